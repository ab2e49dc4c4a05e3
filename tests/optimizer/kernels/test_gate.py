"""The gate before the compiled kernels: whatever happens to parameters, gradients and states between two steps, the next one is that of
torch's operations, or is refused in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import random_schedule
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from l3rs import L3RS
from l3rs.learned import Celo2, theta
from l3rs.learned.celo2 import SHAPES
from l3rs.optimizer.decision import Decider
from l3rs.optimizer.kernels.memory_layout import addresses

Run = tuple[nn.ParameterList, torch.optim.Optimizer]
ALL = ("sgd", "adam", "adamax", "lion", "lamb", "weight_decay")


def parameters(shapes: list[tuple[int, ...]]) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(torch.randn(s, generator=torch.Generator().manual_seed(i))) for i, s in enumerate(shapes)])


def run_of_l3rs(shapes: list[tuple[int, ...]], native: bool) -> Run:
    network = parameters(shapes)
    learned = random_schedule(network, scale=0.05, directions=ALL, lr0=1e-3)
    return network, L3RS(network.named_parameters(), 50, learned, fused=None if native else False)


def run_of_celo2(shapes: list[tuple[int, ...]], native: bool) -> Run:
    network = parameters(shapes)
    options = {"orthogonalize": False, "vectors": "learned", "fused": None if native else False}
    return network, Celo2(network.named_parameters(), theta.random(SHAPES, 0), 1e-3, **options)  # type: ignore[arg-type]


MAKERS = {"L3RS": run_of_l3rs, "Celo2": run_of_celo2}


def cast_state(dtype: torch.dtype, in_place: bool) -> Callable[[nn.Parameter, torch.optim.Optimizer], None]:
    def change(p: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        for key, t in optimizer.state[p].items():
            if in_place:
                t.data = t.data.to(dtype)
            else:
                optimizer.state[p][key] = t.to(dtype)

    return change


def set_data(new: Callable[[Tensor], Tensor]) -> Callable[[nn.Parameter, torch.optim.Optimizer], None]:
    def change(p: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        p.grad = None
        p.data = new(p.data)

    return change


CHANGES: dict[str, Callable[[nn.Parameter, torch.optim.Optimizer], object]] = {
    "nothing": lambda p, o: None,
    "narrowed, where it lies": set_data(lambda t: t[:1]),
    "grown": set_data(lambda t: torch.cat([t, 0.5 * t])),
    "another shape": set_data(lambda t: t.reshape(-1, 1).squeeze(1) if t.dim() > 1 else t),
    "moved": set_data(lambda t: t.clone()),
    "another order in memory": set_data(lambda t: t.mT.contiguous().mT if t.dim() > 1 else t.clone()),
    "double": set_data(lambda t: t.double()),
    "single": set_data(lambda t: t.float()),
    "frozen": lambda p, o: p.requires_grad_(False),
    "thawed": lambda p, o: p.requires_grad_(True),
    "state in half": cast_state(torch.float16, False),
    "state in double": cast_state(torch.float64, False),
    "state in half, where it was": cast_state(torch.bfloat16, True),
    "state elsewhere": lambda p, o: o.state[p].update({key: t.clone() for key, t in o.state[p].items()}),
    "state gone": lambda p, o: o.state.pop(p, None),
}
GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "alike": lambda g: g,
    "expanded": lambda g: g.flatten()[:1].expand(g.shape),
    "another order in memory": lambda g: g.mT.contiguous().mT if g.dim() > 1 else g,
    "every second": lambda g: torch.stack([g, g], -1)[..., 0],
    "bfloat16": lambda g: g.bfloat16(),
    "double": lambda g: g.double(),
}
PLANS = st.lists(st.tuples(st.sampled_from(list(CHANGES)), st.integers(0, 2), st.sampled_from(list(GRADIENTS))), min_size=1, max_size=5)


def step(run: Run, k: int, gradient: str) -> str:
    """What the step said, if it was refused."""
    network, optimizer = run
    for i, p in enumerate(network):
        g = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * k + i), dtype=torch.float32)
        p.grad_dtype = None  # any
        p.grad = GRADIENTS[gradient](g.to(p.dtype)) if p.requires_grad else torch.zeros_like(p)
    try:
        optimizer.step(loss=torch.tensor(1.0 + 0.5 * k))  # type: ignore[call-arg]
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(plan=PLANS)
def test_whatever_happens_between_steps_c_does_what_torch_does(name: str, plan: list[tuple[str, int, str]]) -> None:
    shapes: list[tuple[int, ...]] = [(5, 7), (6,), (4, 3, 2, 2)]
    runs = [MAKERS[name](shapes, native) for native in (True, False)]
    said = [step(run, 0, "alike") for run in runs]
    assert said == ["", ""]
    for k, (change, which, gradient) in enumerate(plan, start=1):
        for network, optimizer in runs:
            CHANGES[change](network[which], optimizer)
        before = [p.detach().clone() for p in runs[0][0]]
        said = [step(run, k, gradient) for run in runs]
        assert said[0] == said[1]
        assert "\n" not in said[0]
        for p, q, start in zip(runs[0][0], runs[1][0], before, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
            assert torch.equal(p, start) or (p.requires_grad and not said[0])
        if said[0]:
            assert "must have shape" in said[0]
            for network, optimizer in runs:
                for p in network:
                    optimizer.state.pop(p, None)  # as the message says
    assert all(p.isfinite().all() for p in runs[0][0])


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("change", ["narrowed, where it lies", "grown"])
def test_a_layer_that_was_resized_is_refused_until_its_state_is_dropped(name: str, change: str) -> None:
    run = MAKERS[name]([(5, 7), (6,)], native=True)
    network, optimizer = run
    assert step(run, 0, "alike") == ""
    CHANGES[change](network[0], optimizer)
    rest, count = network[1].detach().clone(), optimizer.param_groups[0]["step"]
    for _ in range(2):
        assert "a layer that was resized needs a new optimizer" in step(run, 1, "alike")
    assert torch.equal(network[1], rest)
    assert optimizer.param_groups[0]["step"] == count
    del optimizer.state[network[0]]
    assert step(run, 1, "alike") == ""
    assert all(p.isfinite().all() for p in network)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_no_default_dtype_matters(name: str, dtype: torch.dtype) -> None:
    ends = []
    for default in (torch.float32, dtype):
        torch.set_default_dtype(default)
        try:
            network = nn.ParameterList([nn.Parameter(torch.ones(n, 3, dtype=torch.float32)) for n in (4, 300)])
            optimizer: torch.optim.Optimizer = (
                L3RS(network.parameters(), 10) if name == "L3RS" else Celo2(network.parameters(), "icons-celo2-base")
            )
            for k in range(3):
                step((network, optimizer), k, "alike")
        finally:
            torch.set_default_dtype(torch.float32)
        ends.append([p.detach().clone() for p in network])
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("wrong", [torch.zeros(3, 5), torch.zeros(5, 3, dtype=torch.float16), torch.zeros(3, 5).T, torch.zeros(5)])
def test_no_address_is_taken_of_what_is_not_alike(wrong: Tensor) -> None:
    p = torch.zeros(5, 3)
    assert addresses([p, None], [p, p]) == [p.data_ptr(), 0]
    with pytest.raises(ValueError, match=r"a moment of a parameter of shape \(5, 3\), torch.float32 on cpu must be alike"):
        addresses([wrong], [p])


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("shown", ["zeros without memory", "negated view"])
def test_a_gradient_that_is_not_what_lies_in_memory_is_taken_by_its_values(name: str, shown: str) -> None:
    ends = []
    for plain in (False, True):
        run = MAKERS[name]([(5, 7), (6,)], native=True)
        assert step(run, 0, "alike") == ""
        for p in run[0]:
            p.grad = torch._efficientzerotensor(p.shape) if shown.startswith("zeros") else torch._neg_view(torch.ones_like(p))
            if plain:
                p.grad = p.grad.clone() if shown.startswith("zeros") else torch.full_like(p, -1.0)
        run[1].step(**({"loss": 1.0} if name == "L3RS" else {}))
        ends.append([p.detach().clone() for p in run[0]])
    assert all(torch.equal(p, q) and p.isfinite().all() for p, q in zip(*ends, strict=True))


def test_no_address_is_taken_of_what_has_no_memory() -> None:
    p = torch.zeros(5, 3)
    p.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="has no memory"):
        addresses([p], [p])
    assert addresses([torch.zeros(0, 3)], [torch.zeros(0, 3)]) == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.mlp.update(w2=d.mlp["w2"][:, :-1]), r"w2 of a controller must be torch.float32 of shape \(32, 32\)"),
        (lambda d: d.mlp.update(b3=d.mlp["b3"].double()), "b3 of a controller must be torch.float32"),
        (lambda d: d.constants.append(torch.zeros(len(d.steps), 1)), "a controller of 49 inputs must see as many features"),
        (lambda d: d.group.fill_(2), "group must be places from 0 to 0"),
        (lambda d: setattr(d, "steps", d.steps[:1]), "of shape"),
        (lambda d: setattr(d.averages, "values", d.averages.values[:, :1]), "ema of a controller must be"),
    ],
)
def test_no_table_of_another_form_comes_to_a_compiled_controller(change: Callable[[Decider], object], message: str) -> None:
    run = run_of_l3rs([(5, 7), (6,)], native=False)
    assert step(run, 0, "alike") == ""
    (layers,) = run[1]._tables.by_device  # type: ignore[attr-defined]
    layers.decision.tables()
    change(layers.decision)
    with pytest.raises(ValueError, match=message):
        layers.decision.tables()
