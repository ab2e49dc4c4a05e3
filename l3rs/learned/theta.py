"""The meta-parameters of the learned optimizers by name, as one flat vector and back, and the files that they are published in.

Names and shapes are those of the published JAX code, `module/name` with layers as x @ w + b. A file is never unpickled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from l3rs.controller.decide import unflatten
from l3rs.extras import require
from l3rs.learned.accumulators import WIDTHS
from l3rs.learned.mlp import MLP
from l3rs.schedules.find import SHIPPED_WEIGHTS, locate
from l3rs.schedules.seal import CheckpointError

Theta = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]
MODULE = "ff_mod_stack/~/"


def mlp_shapes(hidden: int, stack: int | None = None) -> dict[str, tuple[int, ...]]:
    """Of the MLP, or of a stack of this many. Its first layer is kept in pieces, one for each group of features."""
    lead = () if stack is None else (stack,)
    shapes: dict[str, tuple[int, ...]] = {f"w0__{i}": (width, hidden) for i, width in enumerate(WIDTHS)}
    shapes |= {"b0": (hidden,), "w1": (hidden, hidden), "b1": (hidden,), "w2": (hidden, 3), "b2": (3,)}
    return {MODULE + name: (*lead, *shape) for name, shape in shapes.items()}


def lstm_shapes(rows: int, lstm: int, stack: int) -> dict[str, tuple[int, ...]]:
    """Of the LSTM that sees `rows` numbers of each tensor, and of what turns its state into a step size and `stack` controls."""
    shapes: dict[str, tuple[int, ...]] = {"lstm_init_state/hidden": (1, lstm), "lstm_init_state/cell": (1, lstm)}
    layers: dict[str, tuple[int, int]] = {
        "linear": (rows, lstm),
        "linear_1": (rows, lstm),
        "linear_2": (rows, lstm),
        "rnn/linear": (2 * lstm, 4 * lstm),
    }
    layers |= {"rnn_to_controls": (lstm, stack), "step_size": (lstm, 1)}
    for name, shape in layers.items():
        shapes |= {f"rnn_params/{name}/w": shape, f"rnn_params/{name}/b": shape[1:]}
    return shapes


def count(shapes: Shapes) -> int:
    """Meta-parameters in all."""
    return sum(math.prod(shape) for shape in shapes.values())


def flatten(theta: Theta, shapes: Shapes) -> Tensor:
    """One float32 vector, in the order of `shapes`."""
    return torch.cat([theta[name].detach().float().flatten() for name in shapes])


def random(shapes: Shapes, seed: int) -> Tensor:
    """A flat vector of weights from a normal distribution, cut off at two standard deviations of 1 / sqrt(number of inputs), and biases of
    zero, as the originals start from. All pieces of the MLP's first layer count as one."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, shape in shapes.items():
        leaf = name.rpartition("/")[2]
        inputs = sum(WIDTHS) if leaf.startswith("w0__") else shape[-2] if leaf.startswith("w") else 0
        drawn[name] = torch.zeros(shape, dtype=torch.float32)
        if inputs:
            torch.nn.init.trunc_normal_(drawn[name], std=inputs**-0.5, a=-2 * inputs**-0.5, b=2 * inputs**-0.5, generator=generator)
    return flatten(drawn, shapes)


def resolve(theta: Tensor | str | Path | Sequence[str | Path], shapes: Shapes) -> dict[str, Tensor]:
    """Meta-parameters by name, float32, from a flat vector or from published files.

    Raises as `unflatten` and `read` do, and ValueError if a number of the vector is not finite.
    """
    if isinstance(theta, Tensor):
        named = unflatten(theta.detach().float(), shapes)
        if not theta.isfinite().all():
            raise ValueError(f"theta holds numbers that are not finite ({int((~theta.isfinite()).sum())} of {theta.numel()})")
        return named
    return unflatten(read(shapes, *([theta] if isinstance(theta, str | Path) else theta)), shapes)


def mlp(theta: Theta) -> MLP:
    """The MLP, or the stack of them."""
    first = torch.cat([theta[f"{MODULE}w0__{i}"] for i in range(len(WIDTHS))], dim=-2)
    return MLP(first, *(theta[MODULE + name] for name in ("b0", "w1", "b1", "w2", "b2")))


def place(given: str | Path) -> Path:
    """The file that a path, or the name of shipped weights, means."""
    return locate(given) if given in SHIPPED_WEIGHTS else Path(given)


def read(shapes: Shapes, *paths: str | Path) -> Tensor:
    """Reads a flat vector from published files: flax's msgpack (`theta.state`), `.npz`, or safetensors, with the names of the JAX code or
    with those of PyLO, whose VeLO comes in two files. What is in several files is taken from the last. What is shipped goes by its name.

    Raises:
        CheckpointError: a file is missing, cannot be read, or does not hold these names and shapes; the message says which and why.
    """
    found: dict[str, Tensor] = {}
    shipped = f"shipped by name: {', '.join(SHIPPED_WEIGHTS)}"
    for path in map(place, paths):
        if not path.is_file():
            raise CheckpointError(
                f"{path} is not a file; the meta-parameters are published as .state (flax), .safetensors or .npz files; {shipped}"
            )
        found |= _tensors(path, shapes)
    where = " and ".join(map(str, paths))
    missing = [name for name in shapes if name not in found]
    unknown = [name for name in found if name not in shapes]
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"holds {unknown[0]}, which is not of this optimizer"
        raise CheckpointError(f"{where} {what} ({len(missing)} names are missing, {len(unknown)} unknown)")
    for name, shape in shapes.items():
        if tuple(found[name].shape) != shape:
            raise CheckpointError(f"{where} holds {name} of shape {tuple(found[name].shape)}, not {shape}: another optimizer, or size")
        if not found[name].is_floating_point():
            raise CheckpointError(f"{where} holds {name} of {found[name].dtype}; floating ones are read")
        if not found[name].float().isfinite().all():
            raise CheckpointError(f"{where} holds {name} with numbers that are not finite")
    return flatten(found, shapes)


def _tensors(path: Path, shapes: Shapes) -> dict[str, Tensor]:
    """Everything in one file, with the names of the JAX code."""
    if path.suffix not in (".npz", ".safetensors"):
        require(path.name, "msgpack")
    try:
        if path.suffix == ".npz":
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:  # numpy leaves a broken one open
                return {name: _from_npz(file, name, shapes) for name in file.files}
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return _from_pylo({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  (not a dict)
        import msgpack

        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_array, raw=False, strict_map_key=False)
        if not isinstance(tree, dict):
            raise CheckpointError(f"there is {type(tree).__name__}, not names and arrays")
        if tree.keys() == {"params", "gen_id", "step"} and isinstance(tree["params"], dict):  # what learned_optimization wraps them in
            tree = tree["params"]
        return dict(_leaves(tree))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # three formats' readers, and what they raise for broken files is not said
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} cannot be read ({why}); it may be truncated, or of another format") from None


def _from_npz(file: Any, name: str, shapes: Shapes) -> Tensor:
    """An array of an .npz file. One that is not asked for, or of another shape, takes no memory: few bytes may unpack to gigabytes."""
    with file.zip.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(member)
    if dtype.kind not in "biufc":
        raise ValueError(f"{name} is an array of {dtype}, not of numbers")
    return torch.from_numpy(file[name]) if shapes.get(name) == shape else torch.empty(shape, device="meta")


def _array(code: int, data: bytes) -> Any:
    """flax's extension types: 1 is an array, 3 a number, as (shape, dtype, bytes)."""
    if code not in (1, 3):
        raise CheckpointError(f"there is an object of type {code}; arrays (1) and numbers (3) are read")
    import msgpack

    shape, dtype, buffer = msgpack.unpackb(data, raw=False)
    if dtype not in ("float32", "float64", "float16"):
        raise CheckpointError(f"there is an array of {dtype}; floating ones are read")
    return torch.from_numpy(np.frombuffer(buffer, dtype=dtype).reshape(shape).copy())


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}/")
        elif isinstance(value, Tensor):
            yield name, value
        else:
            raise CheckpointError(f"{name} is {type(value).__name__}, not an array")


_LINEAR = {
    "mix_layer1": "linear",
    "mix_layer2": "linear_1",
    "final_mix_layer": "linear_2",
    "lstm.linear": "rnn/linear",
    "rnn_to_controls": "rnn_to_controls",
    "step_size": "step_size",
}
_SMALL_FC = {"network.input": 0, "network.linear_0": 1, "network.output": 2}
_OFFSETS = {  # of btherien/mulo's decays; they are in PyLO's code, for every file
    "momentum_decays": [0.15216392, 0.14245212, 0.06812963],
    "rms_decays": [0.01079706],
    "adafactor_decays": [0.18621896, -0.10864615, -0.06185547],
}


def _from_pylo(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of PyLO turned into those of the JAX code; files with other names stay as they are.

    PyLO stores dense layers as (out, in), its Celo2 excepted. Its VeLO keeps the MLP last in use beside the stack (`input_weights` beside
    `input_weights_`); that one is a leftover. Its small_fc_lopt has the MLP alone.
    """
    named: dict[str, Tensor] = {}
    if "network.input.weight" in found:
        named = {name: torch.tensor(offsets, dtype=torch.float32) for name, offsets in _OFFSETS.items()}
    for name, t in found.items():
        module, _, leaf = name.rpartition(".")
        if module in _LINEAR and leaf in ("weight", "bias"):
            named[f"rnn_params/{_LINEAR[module]}/{leaf[0]}"] = t.T if leaf == "weight" and t.dim() == 2 else t
        elif module in _SMALL_FC and leaf in ("weight", "bias"):
            named[f"nn/~/{leaf[0]}{_SMALL_FC[module]}"] = t.T if leaf == "weight" and t.dim() == 2 else t
        elif name in ("lstm_init_state.0", "lstm_init_state.1"):
            named["lstm_init_state/" + ("hidden", "cell")[int(name[-1])]] = t
        elif name == "input_weights_":
            if t.dim() != 3 or t.shape[2] != sum(WIDTHS):
                raise CheckpointError(f"{name} has shape {tuple(t.shape)}, not (MLPs, units, {sum(WIDTHS)})")
            named |= {f"{MODULE}w0__{i}": piece for i, piece in enumerate(t.transpose(1, 2).split(WIDTHS, dim=1))}
        elif re.fullmatch(r"(hidden|output)_weights_(\.0)?", name):
            named[f"{MODULE}w{1 if name[0] == 'h' else 2}"] = t.transpose(1, 2) if t.dim() == 3 else t
        elif re.fullmatch(r"(input|hidden|output)_bias_(\.0)?", name):
            named[f"{MODULE}b{'iho'.index(name[0])}"] = t
        elif re.fullmatch(r"(input|hidden|output)_(weights|bias)(\.0)?", name):
            continue
        elif re.fullmatch(r"w0\.\d+", name):
            named[f"{MODULE}w0__{name[3:]}"] = t
        elif re.fullmatch(r"dense_[wb]\.[01]", name):
            named[f"{MODULE}{name[6]}{int(name[-1]) + 1}"] = t
        else:
            named[MODULE + name if name == "b0" else name] = t
    return named


__all__ = ["MODULE", "Shapes", "Theta", "count", "flatten", "lstm_shapes", "mlp", "mlp_shapes", "random", "read", "resolve", "unflatten"]
