"""VeLO, Celo and Celo2 against trajectories made with the original JAX code; `tests/goldens/learned/README.md` says what is there."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from l3rs.learned import Celo, Celo2, VeLO
from l3rs.learned import theta as meta
from l3rs.learned.base import LearnedRule
from l3rs.learned.celo2 import SHAPES
from l3rs.learned.elements import library

HERE = Path(__file__).parent.parent / "goldens" / "learned"
MANIFEST = json.loads((HERE / "manifest.json").read_text())
LEAVES = {leaf["name"]: len(leaf["shape"]) for leaf in MANIFEST["leaves"]}
STEPS = MANIFEST["n_steps"]
CELO = os.environ.get("L3RS_CELO_THETA", "")
LR = float(np.float32(0.01))
Array = npt.NDArray[Any]


@lru_cache(maxsize=8)
def arrays(name: str) -> dict[str, Array]:
    with np.load(HERE / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@lru_cache(maxsize=2)
def theta(kind: str) -> dict[str, Tensor]:
    """Meta-parameters as the manifest says that they are drawn."""
    drawn = {}
    for t in MANIFEST[f"theta_{kind}"]:
        rng = np.random.default_rng([zlib.crc32(f"{kind}/{t['name']}".encode()), MANIFEST["theta_salt"]])
        constant = t["scale"] == "constant 5.0"
        values = np.full(t["shape"], 5.0) if constant else rng.standard_normal(t["shape"]) * t["scale"]
        drawn[t["name"]] = torch.tensor(values.astype(np.float32))
        assert float(drawn[t["name"]].sum(dtype=torch.float64)) == pytest.approx(t["sum"], rel=1e-4, abs=1e-3)
    return drawn


def in_torch(a: Array, axes: int) -> Array:
    """(in, out) and HWIO, in the last so many axes, to torch's (out, in) and OIHW."""
    lead = a.ndim - axes
    order = (axes - 1, axes - 2, *range(axes - 2)) if axes > 1 else range(axes)
    return a.transpose(*range(lead), *(lead + axis for axis in order)).copy()


def celo2(params: list[tuple[str, nn.Parameter]], **options: Any) -> LearnedRule:
    return Celo2(params, meta.flatten(theta("celo2"), SHAPES), lr=LR, **{"vectors": "learned", **options})


def velo(total_steps: int) -> Callable[..., LearnedRule]:
    return lambda params, **options: VeLO(params, meta.flatten(theta("velo"), VeLO.FORM.shapes), total_steps, **options)


FILES: dict[str, tuple[Callable[..., LearnedRule], float, float]] = {
    "celo2_base": (partial(celo2, orthogonalize=False), LR, 2e-5),
    "celo2_ortho": (celo2, LR, 2e-4),
    "velo_k20": (velo(20), 1.0, 4e-4),
    "velo_k200": (velo(200), 1.0, 4e-4),
    "celo_k200": (lambda params, **options: Celo(params, CELO, 200, **options), 1.0, 5e-5),
}
NAMES = [pytest.param(n, marks=pytest.mark.skipif(n[:5] == "celo_" and not CELO, reason="L3RS_CELO_THETA names no file")) for n in FILES]


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    return {n: nn.Parameter(torch.tensor(in_torch(arrays("inputs")[f"param0/{n}"], axes), dtype=dtype)) for n, axes in LEAVES.items()}


def trajectory(
    params: dict[str, nn.Parameter], optimizer: LearnedRule, seen: Callable[[int], None] = lambda t: None
) -> dict[str, list[Array]]:
    """What each step subtracts from each parameter."""
    inputs, moved = arrays("inputs"), {name: [] for name in params}
    for t in range(STEPS):
        before = {name: p.detach().clone() for name, p in params.items()}
        for name, p in params.items():
            p.grad = torch.tensor(in_torch(inputs[f"grad/{name}"][t], LEAVES[name]), dtype=p.dtype)
        optimizer.step(loss=torch.tensor(float(inputs["loss"][t]), dtype=next(iter(params.values())).dtype))
        for name, p in params.items():
            moved[name].append((before[name] - p.detach()).double().numpy())
        seen(t)
    return moved


def errors(found: list[Array], expected: Array) -> list[float]:
    sizes = [float(np.linalg.norm(x)) for x in expected]
    least = 0.1 * float(np.median(sizes))
    return [float(np.linalg.norm(x - y)) / max(size, least) for x, y, size in zip(found, expected, sizes, strict=True)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fused", [None, False])
def test_every_step_is_that_of_the_original(name: str, fused: bool | None) -> None:
    make, lr, limit = FILES[name]
    params = parameters()
    optimizer = make(list(params.items()), fused=fused)
    moved = trajectory(params, optimizer)
    assert bool(optimizer._portions._kernels) == (fused is None and library() is not None)
    for leaf, steps in moved.items():
        expected = in_torch(arrays(name)[f"step/{leaf}"].astype(np.float64), LEAVES[leaf])
        worst = max(errors([step / lr for step in steps], expected))
        assert worst < limit, (leaf, worst)


@pytest.mark.parametrize("name", [name for name in FILES if name != "celo_k200"])
def test_every_step_is_that_of_the_original_in_float64(name: str) -> None:
    make, lr, _ = FILES[name]
    params = parameters(torch.float64)
    for leaf, steps in trajectory(params, make(list(params.items()))).items():
        expected = in_torch(arrays(name)[f"step64/{leaf}"].astype(np.float64), LEAVES[leaf])
        worst = max(errors([step / lr for step in steps], expected))
        assert worst < 1e-6, (leaf, worst)


def test_adam_for_vectors_is_that_of_meta_training() -> None:
    params = {name: p for name, p in parameters().items() if LEAVES[name] < 2}
    optimizer = celo2(list(params.items()), vectors="adam", adam_lr_mult=1.0)
    for leaf, steps in trajectory(params, optimizer).items():
        worst = max(errors([step / LR for step in steps], arrays("celo2_ortho")[f"adam_step/{leaf}"].astype(np.float64)))
        assert worst < 2e-5, (leaf, worst)


def test_adam_for_vectors_is_torchs_adamw_in_the_form_of_the_model_card() -> None:
    params, others = ({name: p for name, p in parameters().items() if LEAVES[name] < 2} for _ in range(2))
    ours = celo2(list(params.items()), vectors="adamw", weight_decay=0.1)
    theirs = torch.optim.AdamW(others.values(), lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for t in range(STEPS):
        for named in (params, others):
            for leaf, p in named.items():
                p.grad = torch.tensor(arrays("inputs")[f"grad/{leaf}"][t])
        ours.step()
        theirs.step()
    for leaf, p in params.items():
        torch.testing.assert_close(p, others[leaf], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["celo2_base", "velo_k20"])
def test_accumulators_after_the_last_step(name: str) -> None:
    params = parameters()
    optimizer = FILES[name][0](list(params.items()))
    trajectory(params, optimizer)
    keys = {"m": "momentum", "rms": "second", "v_row": "row", "v_col": "col", "v_diag": "square"}
    compared = 0
    for key, expected in arrays(name).items():
        if key.startswith("acc19/"):
            _, leaf, what = key.split("/")
            found = optimizer.state[params[leaf]][keys[what]]
            values = in_torch(np.moveaxis(expected, -1, 0), LEAVES[leaf]) if what in ("m", "rms") else np.moveaxis(expected, -1, 0)
            if what in ("v_row", "v_col") and LEAVES[leaf] == 4:  # HWI or HWO, with O or I taken out
                values = values.transpose(0, 3, 1, 2)
            torch.testing.assert_close(found.flatten(), torch.tensor(values.copy()).flatten(), rtol=1e-5, atol=1e-12)
            compared += 1
    assert compared == 11


@pytest.mark.parametrize("name", NAMES[2:])
def test_what_the_lstm_sees_and_makes_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = arrays(name)
    params = parameters()
    optimizer = FILES[name][0](list(params.items()))
    rows: list[Tensor] = []
    original = VeLO._rows
    monkeypatch.setattr(VeLO, "_rows", lambda self, *a: rows.append(original(self, *a)) or rows[-1])

    def seen(t: int) -> None:
        torch.testing.assert_close(rows[t], torch.tensor(expected["lstm_in"][t]), rtol=1e-3, atol=2e-4)
        norms = torch.stack([torch.stack([optimizer.state[p][key].norm() for key in ("hidden", "cell")]) for p in params.values()])
        torch.testing.assert_close(norms[:, 0], torch.tensor(expected["h_norm"][t]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norms[:, 1], torch.tensor(expected["c_norm"][t]), rtol=1e-4, atol=1e-5)
        group = optimizer.param_groups[0]
        torch.testing.assert_close(torch.tensor(group["loss_means"]), torch.tensor(expected["loss_means"][t]), rtol=1e-5, atol=0)
        torch.testing.assert_close(torch.tensor(group["loss_least"]), torch.tensor(expected["loss_min"][t]), rtol=1e-5, atol=0)

    trajectory(params, optimizer, seen)
    assert len(rows) == STEPS
