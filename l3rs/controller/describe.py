"""What each layer of a network is, told from the names and shapes of its parameters alone; and what its lengths are measured by."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import accumulate, takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from l3rs.controller.config import L3RSConfig

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
    matrices = [i for i, shape in enumerate(shapes) if len(shape) >= 2]
    vectors = [i for i, shape in enumerate(shapes) if len(shape) < 2]
    owner = _owners_by_order(shapes) if names is None else _owners_by_name(shapes, names)
    called = ["" for _ in shapes] if names is None else list(names)
    axes = [None if of is None else len(shapes[of]) for of in owner]
    whole = _networks([called[i] for i in matrices])
    kinds = [_kind(*layer, whole) for layer in zip(shapes, called, axes, strict=True)]
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
        tuple(math.prod(shape[1:]) if len(shape) >= 2 else 1 for shape in shapes),
        tuple(depth[i] for i in range(len(shapes))),
        0 if at is None else int(shapes[at][0]),
    )


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


def _owners_by_name(shapes: Sequence[Sequence[int]], names: Sequence[str]) -> list[int | None]:
    """The place of the matrix that each vector is the bias of, or of the scale that it is the shift of; None for all others."""
    known = {name: i for i, name in enumerate(names)}
    owner: list[int | None] = []
    for shape, name in zip(shapes, names, strict=True):
        stem, matrices = name[:-4], {"beta": ("gamma",), "bias": WEIGHTS}.get(name[-4:], ())
        of = next((known[stem + matrix] for matrix in matrices if stem + matrix in known), None)
        owner.append(of if len(shape) <= 1 else None)
    return owner


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


def _kind(shape: Sequence[int], name: str, owner_axes: int | None, networks: Collection[str]) -> str:
    """The kind of a layer that is not of the head; `owner_axes`: of the layer that it is the bias or shift of."""
    axes = len(shape)
    own = ".".join(PARAMETRIZED.sub(r".\1", name).split(".")[-2:])  # a module that is called so may hold a whole network
    if EMBEDDINGS.search(own) and "proj" not in name and "norm" not in name and owner_axes is None and (axes != 4 or shape[0] == 1):
        return "embedding"
    if axes <= 1:
        return "scale" if owner_axes is None else "bias" if owner_axes >= 2 else "shift"
    within = max((module for module in accumulate(name.split("."), "{}.{}".format) if module in networks), key=len, default="")
    if ATTENTION.search(name[len(within) :]):
        return "attention"
    if axes == 2:
        return "dense"
    if axes == 4 or axes == 5:
        return "depthwise" if shape[1] == 1 and shape[0] > 1 and math.prod(shape[2:]) > 1 else "kernel"
    alone = axes == 3 and (shape[0] == 1 or math.prod(shape) == shape[0])  # tokens and positions, or a number for each channel
    return "embedding" if alone else "other"


def describe(table: LayerTable, shapes: Sequence[Sequence[int]], scale: float) -> Tensor:
    """The numbers that the controller sees of each layer, (L, 17): one of `KINDS`, and `NUMBERS`; logarithms divided by `scale`."""
    matrices = sum(len(shape) >= 2 for shape in shapes)
    rows = []
    for kind, shape, fan_in, depth in zip(table.kinds, shapes, table.fan_in, table.depth, strict=True):
        logs = (fan_in, shape[0] if shape else 1, math.prod(shape), table.classes, matrices)
        rows.append([*(float(kind == k) for k in KINDS), depth, *(math.log(max(n, 1)) / scale for n in logs)])
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, len(KINDS) + len(NUMBERS))


class Sizes:
    """The size of each layer, by which the unit `size` measures its steps.

    It is the norm of its weights; of a bias, that of its kernel; of a shift, that of its scale; at least `relative_floor` for each element.
    So a function-preserving change of the network, a kernel before a normalization times a number or a ReLU network's layers times s and
    1/s, changes lengths alike, and a run stays the same function.

    The head's size, of its weights and of its biases, is the length that moves each logit by 1 through the weights, however small the head
    begins: sqrt(classes) / f, where f is the norm of the head's inputs. For one image the gradient of the weights is the outer product of
    the gradient of the biases with the inputs; so f is the ratio of the norms of the two gradients. For a batch it is close to it: within a
    quarter on tasks of 25 classes with the shipped networks (tests/controller/test_describe.py). It is at most `feature_rms_cap` *
    sqrt(fan_in). Where only one of the two is stepped, f is `feature_rms` * sqrt(fan_in).

    Args:
        table: of all layers of the network.
        numels: elements of each of these.
        places: in the table, of the L layers that are stepped.
        norm: of a layer by its place, in l2; asked for once, of layers that give others their size and are not stepped themselves.
        config: gives floors and multipliers.
        like: a tensor of the device and dtype.

    Attributes:
        multiplier: (L,), of the sizes, the length at lambda = 1.
    """

    def __init__(
        self,
        table: LayerTable,
        numels: Sequence[int],
        places: Sequence[int],
        norm: Callable[[int], float],
        config: L3RSConfig,
        like: Tensor,
    ) -> None:
        row = {place: i for i, place in enumerate(places)}
        by = [table.sized_by[place] for place in places]
        floors = [config.relative_floor * math.sqrt(numels[place]) for place in places]
        constant = {i: norm(of) for i, of in enumerate(by) if of not in row}
        head = [row[place] for place in table.head if place in row]
        if head:
            usual = math.sqrt(table.classes / table.fan_in[table.head[0]])  # type: ignore[index]  # a bias is of weights
            for i in head:
                constant[i], floors[i] = usual / config.feature_rms, usual / config.feature_rms_cap
        self.root, self.pair = math.sqrt(table.classes), head if len(head) == 2 else None
        self.rows = torch.tensor([row.get(of, 0) for of in by], device=like.device)
        self.floor = like.new_tensor(floors)
        self.fixed = torch.tensor([i in constant for i in range(len(places))], device=like.device) if constant else None
        self.constants = like.new_tensor([constant.get(i, 0.0) for i in range(len(places))])
        self.of_head = torch.tensor([i in head for i in range(len(places))], device=like.device)
        self.multiplier = like.new_tensor([config.head_logits if i in head else config.lr0 for i in range(len(places))])

    def __call__(self, weights: Tensor, grads: Tensor) -> Tensor:
        """The sizes, (L,), from the norms of the layers' weights and gradients, (L,)."""
        sizes = weights[self.rows]
        if self.fixed is not None:
            sizes = torch.where(self.fixed, self.constants, sizes)
        if self.pair is not None:
            of_weights, of_biases = (grads[i] for i in self.pair)
            moved = of_weights > 0
            known = torch.where(moved, self.root * of_biases / torch.where(moved, of_weights, 1), 0)
            sizes = torch.where(self.of_head, known, sizes)
        return torch.maximum(sizes, self.floor)
