"""What each layer of a network is, told from the names and shapes of its parameters alone."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, takewhile
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("kernel", "depthwise", "dense", "attention", "embedding", "bias", "scale", "shift", "head", "head's bias", "other")
NUMBERS = ("depth", "log_fan_in", "log_fan_out", "log_numel", "log_classes", "log_layers")
HEADS = {
    "fc",
    "head",
    "heads",
    "head_drop",
    "classifier",
    "last_linear",
    "output",
    "score",
    "lm_head",
}  # what networks call the module that classifies
# What the weights of a bias are called, as they are or within a parametrization, such as a weight norm: its matrix, not its norms.
WEIGHTS = ("weight", "parametrizations.weight.original", "parametrizations.weight.original1", "weight_v", "weight_orig")
# What a bias is called that is no X.bias, and the weights that it may be of: of recurrent layers, and of attentions with one for each part.
BIASES = (
    (re.compile(r"bias_([ih]h(_l\d+(_reverse)?)?)$"), (r"weight_\1",)),
    (re.compile(r"([qkv])_bias$"), ("qkv.weight", r"\1_proj.weight")),
    (re.compile(r"in_proj_bias$"), ("in_proj_weight", "q_proj_weight")),
)
MAGNITUDES = (".parametrizations.weight.original0", ".weight_g")  # of a weight norm: a number for each row
PARAMETRIZED = re.compile(r"\.parametrizations\.(\w+)\.original\d?$")
ATTENTION = re.compile("attn|attention|qkv")
PARTS = 3  # matrices of a block at least [choice]
MANY = 8  # matrices: a module that holds more, and more than half of all, is a network, not an attention [choice]
EMBEDDINGS = re.compile(r"embed|cls_token|class_token|dist_token|reg_token|relative_position|bias_table|\bwpe\b|\bwte\b")


class LayerTable(NamedTuple):
    """The layers of a network, L of them, in the order of its parameters.

    Attributes:
        kinds: of each, one of `KINDS`.
        sized_by: the place of the layer whose norm is the size of each: its own, its kernel's for a bias, its scale's for a shift.
        fan_in: of each; of a vector, 1.
        depth: of each, the share of layers that come before it, of those with as many axes (one, or more): it is the same where the
            parameters come in one group, and where vectors and matrices come in two.
        classes: rows of the head; 0 without a head.
    """

    kinds: tuple[str, ...]
    sized_by: tuple[int, ...]
    fan_in: tuple[int, ...]
    depth: tuple[float, ...]
    classes: int

    @property
    def head(self) -> tuple[int | None, int | None]:
        """The places of the head's weights and biases; None for what there is not."""
        return tuple(self.kinds.index(kind) if kind in self.kinds else None for kind in ("head", "head's bias"))  # type: ignore[return-value]


def layer_table(shapes: Sequence[Sequence[int]], names: Sequence[str] | None = None, head: str | None = None) -> LayerTable:
    """Tells what each layer is.

    With names, a bias belongs to the matrix of its module, and a shift to the scale of its module. Without, vectors belong to the matrix
    before them: of an odd run of as many elements as the matrix has rows, the first is its bias; further pairs are scales and shifts. The
    head is the last matrix of a module that is called as heads are, see `called_head`, or else the last matrix of all, unless that is one
    of several alike, see `is_of_a_block`.

    Args:
        shapes: of the parameters.
        names: of the parameters, or None.
        head: the name of the module that classifies; "" is none, and None finds it.

    Raises:
        ValueError: there is no dense layer of the name `head`.
    """
    called = ["" for _ in shapes] if names is None else list(names)
    vector = [_is_vector(*layer) for layer in zip(shapes, called, strict=True)]
    matrices, vectors = ([i for i, v in enumerate(vector) if v is which] for which in (False, True))
    owner = _owners_by_order(shapes) if names is None else _owners_by_name(shapes, names)
    of_vector = [None if of is None else vector[of] for of in owner]
    whole = _networks([called[i] for i in matrices])
    kinds = [_kind(*layer, whole) for layer in zip(shapes, called, vector, of_vector, strict=True)]
    dense = [i for i in matrices if kinds[i] in ("dense", "kernel") and math.prod(shapes[i][2:]) == 1]
    modules = {i: _module_of(called[i]) for i in dense}
    at = _head(modules, [(i, shapes[i], called[i]) for i in matrices]) if head is None else _named_head(head, modules)
    if at is not None:
        kinds[at] = "head"
        kinds = ["head's bias" if kind == "bias" and of == at else kind for kind, of in zip(kinds, owner, strict=True)]
    depth = {i: (place + 0.5) / len(alike) for alike in (matrices, vectors) for place, i in enumerate(alike)}
    return LayerTable(
        tuple(kinds),
        tuple(i if of is None else of for i, of in enumerate(owner)),
        tuple(1 if v else math.prod(shape[1:]) for shape, v in zip(shapes, vector, strict=True)),
        tuple(depth[i] for i in range(len(shapes))),
        0 if at is None else int(shapes[at][0]),
    )


def _is_vector(shape: Sequence[int], name: str) -> bool:
    """Whether a layer has one number for each channel, whatever other axes; of two axes, which a dense layer has too, only names tell."""
    return len(shape) < 2 or name.endswith(MAGNITUDES) or (len(shape) > 2 and math.prod(shape) == shape[0] > 1)


def _module_of(name: str) -> str:
    """The name of the module that has the parameter of this name, also where it is parametrized."""
    return PARAMETRIZED.sub(r".\1", name).rpartition(".")[0]


def _head(modules: Mapping[int, str], matrices: Sequence[tuple[int, Sequence[int], str]]) -> int | None:
    """The place of the head among dense layers, by their places and the names of their modules; `matrices`: all, in order."""
    place = called_head(list(modules.values()))
    if place is not None and not _numbered(modules[list(modules)[place]]):
        return list(modules)[place]
    if not matrices or matrices[-1][0] not in modules or is_of_a_block([(name, shape) for _, shape, name in matrices]):
        return None
    return matrices[-1][0]


def _numbered(module: str) -> bool:
    """Whether a numbered block comes before what is called as heads are."""
    return any(map(str.isdecimal, takewhile(lambda part: part not in HEADS, module.split("."))))


def _named_head(head: str, modules: Mapping[int, str]) -> int | None:
    """The place of the head of this name, also under wrappers; None for an empty one."""
    if not head:
        return None
    found = [i for i, module in modules.items() if module and (module == head or module.endswith(f".{head}"))]
    exact = [i for i in found if modules[i] == head]
    if not found or (len(found) > 1 and len(exact) != 1):
        there = [module for module in modules.values() if module][-5:]
        if not modules:
            raise ValueError(f"head must be the name of one dense layer (got {head!r}), and there is none")
        raise ValueError(
            f"head must be the name of one dense layer (got {head!r}); the last ones are {', '.join(there)}"
            if there
            else f"head is the name of a layer, and the parameters have no names (got {head!r}): give model.named_parameters()"
        )
    return (exact or found)[0]


def is_of_a_block(matrices: Sequence[tuple[str, Sequence[int]]]) -> bool:
    """Whether the last of these, by name and shape, is a part of a numbered block of which there are several: such a one is no head.

    A block holds `PARTS` matrices or more; layers in a row, and exits one after the other, are none.

    Example:
        >>> is_of_a_block([(f"blocks.{i}.{part}.weight", (8, 8)) for i in (0, 1) for part in ("qkv", "fc1", "fc2")])
        True
        >>> is_of_a_block([("0.weight", (8, 8)), ("2.weight", (8, 8))])
        False
    """
    last, shape = matrices[-1]
    path = last.split(".")
    for i, part in enumerate(path[:-2]):
        if part.isdecimal():
            mine = [name for name, _ in matrices if name.split(".")[: i + 1] == path[: i + 1]]
            others = [name.split(".") for name, its in matrices if tuple(its) == tuple(shape) and name not in mine]
            alike = any(o[:i] == path[:i] and o[i + 1 :] == path[i + 1 :] and o[i].isdecimal() for o in others if len(o) == len(path))
            if alike and len(mine) >= PARTS:
                return True
    return False


def _networks(names: Sequence[str]) -> frozenset[str]:
    """Modules that hold most matrices of these names, and many, in parts with names: networks, whatever they are called."""
    held, parts = Counter[str](), defaultdict[str, set[str]](set)
    for name in names:
        path = name.split(".")
        for depth in range(1, len(path) - 1):
            module = ".".join(path[:depth])
            held[module] += 1
            parts[module].add(path[depth])
    large = max(MANY, len(names) / 2)
    return frozenset(module for module, number in held.items() if number > large and sum(not p.isdecimal() for p in parts[module]) > 1)


def called_head(modules: Sequence[str]) -> int | None:
    """The place of the last module that is called as heads are (`HEADS`), or lies within one that is; None if there is none.

    One within a numbered block, as `layer.3.output.dense` of BERT, is a part of the network, unless all are, and it is the last module.

    Example:
        >>> called_head(["encoder.layer.3.output.dense", "classifier.1", "side"]), called_head(["0.output.dense", "linear"])
        (1, None)
    """
    called = [place for place, module in enumerate(modules) if HEADS.intersection(module.split("."))]
    outside = [place for place in called if not _numbered(modules[place])]
    if outside:
        return outside[-1]
    return called[-1] if called[-1:] == [len(modules) - 1] else None


def is_a_head(module: str, head: str) -> bool:
    """Whether a module may be a head beside the one called `head`: as `head_dist` beside `head`, or `head.1` beside `head.0`.

    Example:
        >>> is_a_head("head_dist", "head"), is_a_head("head.1", "head.0"), is_a_head("head.fc1", "head.fc2"), is_a_head("blocks.0", "head")
        (True, True, False, False)
    """
    mine, its = head.split("."), module.split(".")
    first = next((i for i, (a, b) in enumerate(zip(mine, its, strict=False)) if a != b), None)
    if first is None or mine[first + 1 :] != its[first + 1 :]:
        return False
    a, b = mine[first], its[first]
    numbers = a.isdecimal() and b.isdecimal() and first > 0 and mine[first - 1] in HEADS
    return numbers or {a, b} <= HEADS or any(x in HEADS and y.startswith(f"{x}_") for x, y in ((a, b), (b, a)))


def _owners_by_name(shapes: Sequence[Sequence[int]], names: Sequence[str]) -> list[int | None]:
    """The place of the matrix that each vector is the bias of, or of the scale that it is the shift of; None for all others."""
    known = {name: i for i, name in enumerate(names)}
    owner: list[int | None] = []
    for shape, name in zip(shapes, names, strict=True):
        of = next((known[owning] for owning in _owning(name) if owning in known), None)
        owner.append(of if len(shape) <= 1 else None)
    return owner


def _owning(name: str) -> list[str]:
    """The names of the layers that one of this name may be the bias or the shift of."""
    stem, matrices = name[:-4], {"beta": ("gamma",), "bias": WEIGHTS}.get(name[-4:], ())
    others = [name[: called.start()] + called.expand(matrix) for form, of in BIASES for matrix in of if (called := form.search(name))]
    return [stem + matrix for matrix in matrices] + others


def _owners_by_order(shapes: Sequence[Sequence[int]]) -> list[int | None]:
    """The same, guessed from runs of vectors of one length."""
    owner: list[int | None] = [None] * len(shapes)
    start = 0
    while start < len(shapes):
        end = start + 1
        while end < len(shapes) and len(shapes[start]) == 1 and list(shapes[end]) == list(shapes[start]):
            end += 1
        if len(shapes[start]) == 1:
            follows = start > 0 and len(shapes[start - 1]) >= 2 and shapes[start - 1][0] == shapes[start][0]
            if follows and (end - start) % 2:
                owner[start] = start - 1
                start += 1
            for shift in range(start + 1, end, 2):
                owner[shift] = shift - 1
        start = end
    return owner


def _kind(shape: Sequence[int], name: str, vector: bool, of_vector: bool | None, networks: Collection[str]) -> str:
    """The kind of a layer that is not of the head.

    Args:
        vector: whether it has one number a channel.
        of_vector: whether the layer that it is the shift of has, or it is the bias of a matrix; None where it is of no other.
    """
    axes = len(shape)
    own = ".".join(PARAMETRIZED.sub(r".\1", name).split(".")[-2:])  # a module that is called so may hold a whole network
    if EMBEDDINGS.search(own) and "proj" not in name and "norm" not in name and of_vector is None and (axes != 4 or shape[0] == 1):
        return "embedding"
    if vector:
        return "scale" if of_vector is None else "shift" if of_vector else "bias"
    within = max((module for module in accumulate(name.split("."), "{}.{}".format) if module in networks), key=len, default="")
    if ATTENTION.search(name[len(within) :]):
        return "attention"
    if axes == 2:
        return "dense"
    if axes == 4 or axes == 5:
        return "depthwise" if shape[1] == 1 and shape[0] > 1 and math.prod(shape[2:]) > 1 else "kernel"
    return "embedding" if axes == 3 and shape[0] == 1 and not name.endswith("weight") else "other"  # tokens and positions


def describe(table: LayerTable, shapes: Sequence[Sequence[int]], scale: float) -> Tensor:
    """The numbers that the controller sees of each layer, (L, 17): one of `KINDS`, and `NUMBERS`; logarithms divided by `scale`."""
    matrices = sum(len(shape) >= 2 for shape in shapes)
    rows = []
    for kind, shape, fan_in, depth in zip(table.kinds, shapes, table.fan_in, table.depth, strict=True):
        logs = (fan_in, shape[0] if shape else 1, math.prod(shape), table.classes, matrices)
        rows.append([*(float(kind == k) for k in KINDS), depth, *(math.log(max(n, 1)) / scale for n in logs)])
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, len(KINDS) + len(NUMBERS))
