"""small_fc_lopt against a trajectory made with the original JAX code, muLO's division by hand, and the files that both are published in.

The trajectory, `goldens/learned/small_fc.npz`, was made with `AdafacMLPLOpt(hidden_size=32)` of learned_optimization 0.0.1 (PyPI) under
JAX 0.10.2 on a CPU in float64, from `inputs.npz` and the meta-parameters that it holds. Three things were changed: names of JAX that are
gone were put back, the float32 that the code asks for was widened, and 1e-6 was added to the mean squares of vectors in their last group of
features, as in a later revision (08d79a5), which differs in nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from conftest import equal, small_network, train, weights
from safetensors.torch import save_file
from test_goldens import LEAVES, arrays, errors, in_torch, parameters, trajectory
from test_theta import array, nested
from torch import Tensor, nn

from l3rs import learners
from l3rs.learned import MuLO, SmallFC, mup_groups
from l3rs.learned.elements import library
from l3rs.learned.small_fc import SHAPES, decays, network
from l3rs.learned.theta import count, flatten, random, read, unflatten
from l3rs.learned.weights import starting_weights
from l3rs.schedules.seal import CheckpointError

DRAWN = random(SHAPES, 0) + 0.05 * torch.randn(count(SHAPES), generator=torch.Generator().manual_seed(1))


def of_golden() -> dict[str, Tensor]:
    return {name: torch.tensor(arrays("small_fc")[f"theta/{name}"]) for name in SHAPES}


# -- as the original -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "limit", "fused"), [(torch.float64, 1e-6, None), (torch.float32, 5e-4, None), (torch.float32, 5e-4, False)]
)
def test_every_step_is_that_of_the_original(dtype: torch.dtype, limit: float, fused: bool | None) -> None:
    """In float32 the differences of parameters are rounded too: the original in float32 is 1e-4 from itself in float64."""
    params = parameters(dtype)
    optimizer = SmallFC(params.values(), flatten(of_golden(), SHAPES), fused=fused)
    for leaf, steps in trajectory(params, optimizer).items():
        expected = in_torch(arrays("small_fc")[f"step64/{leaf}"].astype(np.float64), LEAVES[leaf])
        worst = max(errors(steps, expected))
        assert worst < limit, (leaf, worst)
    assert bool(optimizer._portions._kernels) == (fused is None and dtype == torch.float32 and library() is not None)
    for key, expected in arrays("small_fc").items():
        if key.startswith("acc19/") and key.endswith(("/m", "/rms", "/v_diag")):
            _, leaf, what = key.split("/")
            found = optimizer.state[params[leaf]][{"m": "momentum", "rms": "second", "v_diag": "square"}[what]]
            values = in_torch(np.moveaxis(expected, -1, 0), LEAVES[leaf])
            torch.testing.assert_close(found.float().flatten(), torch.tensor(values).flatten(), rtol=limit, atol=1e-12)


def test_decays_start_from_the_usual_ones_and_are_moved_by_ten_times_the_offset_in_the_logarithm() -> None:
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    plain = decays(zeros, torch.float64)
    torch.testing.assert_close(plain.momentum, torch.tensor([0.9, 0.99, 0.999], dtype=torch.float64))
    torch.testing.assert_close(plain.factors, plain.momentum)
    assert plain.second.item() == pytest.approx(0.999)
    for of in ("momentum_decays", "rms_decays", "adafactor_decays"):
        zeros[of] += 0.3  # 1 - 0.9 e^3 is negative: momentum's may be, as in the original
    moved = decays(zeros, torch.float64)
    torch.testing.assert_close(1 - moved.momentum, (1 - plain.momentum) * 20.085536923187668)
    assert moved.momentum[0] < 0
    assert moved.factors[0] == 0
    assert moved.second.item() == pytest.approx(1 - 0.001 * 20.085536923187668)


def test_the_clock_is_seen_through_the_first_bias() -> None:
    theta = unflatten(DRAWN, SHAPES)
    like = torch.zeros(())
    first, late = network(theta, 0, like), network(theta, 300, like)
    clock = torch.tanh(300 / torch.tensor([1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000]) - 1)
    torch.testing.assert_close(late.b0, theta["nn/~/b0"] + clock @ theta["nn/~/w0"][28:])
    torch.testing.assert_close(first.b0, theta["nn/~/b0"] - np.tanh(1) * theta["nn/~/w0"][28:].sum(0))
    assert not first.w0[[1, 14]].any()  # the clipped gradient, and g s
    assert first.w0.any(1).sum() == 28


def test_a_huge_gradient_that_is_finite_leaves_everything_finite() -> None:
    params = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(5))]
    optimizer = SmallFC(params, DRAWN)
    for value in (3e38, 1.0):
        for p in params:
            p.grad = torch.full_like(p, value)
        optimizer.step()
    assert all(t.isfinite().all() for p in params for t in (p, *optimizer.state[p].values()))


# -- muLO ----------------------------------------------------------------------------------------------------------------------------


def moved(params: Iterable[Tensor], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    params = list(params)
    before = [p.detach().clone() for p in params]
    for i, p in enumerate(params):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(p)
    optimizer.step()
    return [a - p.detach() for a, p in zip(before, params, strict=True)]


def test_mulo_divides_the_step_of_hidden_tensors_by_their_fan_in() -> None:
    def layers() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 5), nn.Linear(5, 3)).double()

    plain, wide = layers(), layers()
    ones = moved(plain.parameters(), SmallFC(plain.parameters(), DRAWN))
    tens = moved(wide.parameters(), MuLO(mup_groups(wide.named_parameters()), DRAWN))
    fans = {"1.weight": 4 * 9, "3.weight": 6}
    for (name, _), one, ten in zip(plain.named_parameters(), ones, tens, strict=True):
        torch.testing.assert_close(ten, 10 * one / fans.get(name, 1), rtol=1e-9, atol=1e-12)


def test_groups_say_which_tensors_are_hidden() -> None:
    network = small_network()
    names = {group["hidden"]: [name for name, _ in group["params"]] for group in mup_groups(network.named_parameters())}
    matrices = [name for name, p in network.named_parameters() if p.dim() > 1]
    assert names[True] == matrices[1:-1]
    assert sorted(names[True] + names[False]) == sorted(name for name, _ in network.named_parameters())
    assert mup_groups([nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2))])[0]["hidden"] is False  # a head alone
    vector = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"shape \(3,\) is in a hidden group; hidden tensors have at least two axes"):
        MuLO([{"params": [vector], "hidden": True}], DRAWN)
    with pytest.raises(ValueError, match=r"hidden must be True or False, for all tensors of a group \(got 'yes'\)"):
        MuLO([{"params": [vector], "hidden": "yes"}], DRAWN)
    assert MuLO([vector], DRAWN).param_groups[0]["hidden"] is False


def test_a_run_of_mulo_resumes_bit_equal() -> None:
    straight = small_network()
    optimizer = MuLO(mup_groups(straight.named_parameters()), DRAWN, lr=3.0)
    train(straight, optimizer, range(3))
    resumed = small_network()
    resumed.load_state_dict(straight.state_dict())
    fresh = MuLO(mup_groups(resumed.named_parameters()), DRAWN)
    fresh.load_state_dict(optimizer.state_dict())
    for of, by in ((straight, optimizer), (resumed, fresh)):
        train(of, by, range(3, 5))
    assert equal(weights(straight), weights(resumed))
    assert not equal(weights(straight), weights(small_network()))


@pytest.mark.parametrize(("kind", "of"), [("small-fc", SmallFC), ("mulo", MuLO)])
def test_weights_of_both_kinds_build_their_optimizer(kind: str, of: type[SmallFC]) -> None:
    learned, network = starting_weights(kind, None, "mine", seed=0), small_network()
    optimizer = learners.build(learned, network.named_parameters(), 10)
    assert type(optimizer) is of
    assert [group.get("hidden") for group in optimizer.param_groups] == ([True, False] if of is MuLO else [None])
    train(network, optimizer, range(1))
    assert not equal(weights(network), weights(small_network()))


# -- files ---------------------------------------------------------------------------------------------------------------------------


def pylo(theta: dict[str, Tensor]) -> dict[str, Tensor]:
    layers = {"input": 0, "linear_0": 1, "output": 2}
    file = {f"network.{name}.weight": theta[f"nn/~/w{i}"].T.contiguous() for name, i in layers.items()}
    return file | {f"network.{name}.bias": theta[f"nn/~/b{i}"].clone() for name, i in layers.items()}


def test_files_of_learned_optimization_are_read(tmp_path: Path) -> None:
    theta = unflatten(DRAWN, SHAPES)
    for name, tree in {"theta.state": nested(theta), "params": {"params": nested(theta), "gen_id": "g", "step": 7}}.items():
        (tmp_path / name).write_bytes(msgpack.packb(tree))
        assert torch.equal(read(SHAPES, tmp_path / name), DRAWN)
    network, plain = small_network(), small_network()
    train(network, SmallFC(network.parameters(), tmp_path / "params"), range(2))
    train(plain, SmallFC(plain.parameters(), DRAWN), range(2))
    assert equal(weights(network), weights(plain))


def test_pylos_file_has_the_mlp_and_its_code_the_decays_unless_a_second_file_has(tmp_path: Path) -> None:
    theta = unflatten(DRAWN, SHAPES)
    mlp, offsets = tmp_path / "model.safetensors", tmp_path / "decays.safetensors"
    save_file(pylo(theta), mlp)
    assert {name: tuple(t.shape) for name, t in pylo(theta).items() if name.endswith("weight")} == {
        "network.input.weight": (32, 39),
        "network.linear_0.weight": (32, 32),
        "network.output.weight": (2, 32),
    }
    found = unflatten(read(SHAPES, mlp), SHAPES)
    assert all(torch.equal(found[name], t) for name, t in theta.items() if name.startswith("nn/"))
    torch.testing.assert_close(decays(found, torch.float32).momentum, torch.tensor([0.5421, 0.9584, 0.9980]), rtol=0, atol=1e-4)
    save_file({name: t.clone() for name, t in theta.items() if not name.startswith("nn/")}, offsets)
    assert torch.equal(read(SHAPES, mlp, offsets), DRAWN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network.input.weight": torch.zeros(32, 38)}, r"nn/~/w0 of shape \(38, 32\), not \(39, 32\)"),
        ({"network.output.weight": torch.zeros(3, 32)}, r"nn/~/w2 of shape \(32, 3\), not \(32, 2\)"),
        ({"network.linear_0.bias": torch.zeros(8)}, r"nn/~/b1 of shape \(8,\), not \(32,\)"),
        ({"network.linear_1.weight": torch.zeros(32, 32)}, r"holds network\.linear_1\.weight, which is not of this optimizer"),
        ({"network.input.bias": None}, r"lacks nn/~/b0"),
        ({"network.input.weight": None}, r"lacks momentum_decays"),
        ({"network.output.bias": torch.tensor([0.0, float("nan")])}, "nn/~/b2 with numbers that are not finite"),
    ],
)
def test_other_tensors_are_named(changes: dict[str, Tensor | None], message: str, tmp_path: Path) -> None:
    tensors = {name: t for name, t in (pylo(unflatten(DRAWN, SHAPES)) | changes).items() if t is not None}
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=rf"other\.safetensors.*{message}"):
        SmallFC(small_network().parameters(), tmp_path / "other.safetensors")


def test_other_trees_are_named(tmp_path: Path) -> None:
    tree = nested(unflatten(DRAWN, SHAPES))
    tree["nn"]["~"]["w1"] = array(torch.zeros(4, 4))
    (tmp_path / "theta.state").write_bytes(msgpack.packb(tree))
    with pytest.raises(CheckpointError, match=r"nn/~/w1 of shape \(4, 4\), not \(32, 32\)"):
        read(SHAPES, tmp_path / "theta.state")
    with pytest.raises(ValueError, match=rf"theta has shape \(7,\); there are \({count(SHAPES)},\) meta-parameters"):
        SmallFC(small_network().parameters(), torch.zeros(7))
