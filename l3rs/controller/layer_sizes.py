"""How large each layer is, by which the unit `size` measures its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from l3rs.controller.config import L3RSConfig
from l3rs.controller.describe import LayerTable


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
