"""What defines a learned schedule besides its meta-parameters: every choice that the paper leaves open is a field here."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

UNITS = ("rms", "l2", "relative")
CONTROLLERS = ("shared", "layerwise", "global")
LARGEST = 4096  # of numbers that set sizes: a file that says more is damaged, or meant to fill the memory


@dataclass(frozen=True)
class L3RSConfig:
    """Directions, features, controller and unit of one learned schedule; kept in its checkpoint.

    Attributes:
        directions: base directions in the order of the mixing coefficients mu [paper: SGD and Adam].
        ema_factors: smoothing factors of the adaptive features; 0 is the raw value [choice].
        time_points: number of reference points of relative time, from 0 to 1 inclusive [choice].
        time_slope: a in `tanh(a * (k / K - t_i))` [choice].
        time_scales: scales s_i, in steps, of absolute time `tanh(K / s_i - 1)` [choice].
        controller: `shared`, one MLP for all layers [paper: the default]; `layerwise`, one for each; `global`, one lambda and one mu
            for all layers, from the mean of their features [choice].
        embedding: length of the meta-learned vector of each layer [paper: 16]; 0 is no such vector; only `shared` may have one.
        hidden: widths of the two hidden layers [choice].
        unit: what lambda = exp(0) means; `rms`: lr0 * sqrt(numel), `l2`: 1, `relative`: lr0 * max(norm of the weights, floor) [choice].
        lr0: step size per element at exp(0), for the units `rms` and `relative` [choice].
        relative_floor: the floor of `relative` [choice].
        norm_scale: log root-mean-squares are divided by this before the MLP [choice].
        norm_floor: added to a root-mean-square before its logarithm [choice].
        loss_scale: the loss is divided by this before the MLP [choice].
        initial_mix: logit, in nats, that the initial controller gives the last direction over the others [choice].
        initial_decay: nats by which the initial controller lowers log lambda from the first step to the last [choice].
        initial_horizon: the initial controller's lambda is proportional to K to the power of minus this, and 1 at K = 10 [choice].
        initial_head: how many times larger a step the initial controller gives the new head, where it has embeddings [choice].
    """

    directions: tuple[str, ...] = ("sgd", "adam")
    ema_factors: tuple[float, ...] = (0.5, 0.9, 0.99)
    time_points: int = 11
    time_slope: float = 10.0
    time_scales: tuple[float, ...] = tuple(10 ** (1 + i / 2) for i in range(7))
    controller: str = "shared"
    embedding: int = 16
    hidden: tuple[int, int] = (32, 32)
    unit: str = "rms"
    lr0: float = 5e-3
    relative_floor: float = 1e-3
    norm_scale: float = 4.0
    norm_floor: float = 1e-8
    loss_scale: float = 4.0
    initial_mix: float = 0.0
    initial_decay: float = 3.0
    initial_horizon: float = 0.5
    initial_head: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):  # JSON and YAML give lists
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        if self.unit not in UNITS:
            raise ValueError(f"unit must be one of {', '.join(UNITS)} (got {self.unit!r})")
        if self.controller not in CONTROLLERS:
            raise ValueError(f"controller must be one of {', '.join(CONTROLLERS)} (got {self.controller!r})")
        if self.embedding and self.controller != "shared":
            raise ValueError(f"embedding must be 0 with a {self.controller} controller, which has none (got {self.embedding})")
        if not self.directions:
            raise ValueError("directions must name at least one (got none)")
        if len(set(self.directions)) < len(self.directions):
            raise ValueError(f"directions must name each one once (got {', '.join(self.directions)})")
        wrong = [g for g in self.ema_factors if not 0 <= g < 1]
        if wrong:
            raise ValueError(f"each of ema_factors must be at least 0 and below 1 (got {wrong[0]})")
        if not self.time_scales or not all(0 < s < math.inf for s in self.time_scales):
            raise ValueError(f"time_scales must be one or more numbers of steps, positive and finite (got {list(self.time_scales)})")
        if self.time_points < 2:
            raise ValueError(f"time_points must be at least 2, one for 0 and one for 1 (got {self.time_points})")
        if len(self.hidden) != 2 or min(self.hidden) < 1 or self.embedding < 0:
            raise ValueError(
                f"hidden must be two widths of at least 1, and embedding at least 0 (got {list(self.hidden)} and {self.embedding})"
            )
        if max(self.time_points, self.embedding, *self.hidden) > LARGEST:
            raise ValueError(
                f"time_points, embedding and hidden must be at most {LARGEST} "
                f"(got {self.time_points}, {self.embedding} and {list(self.hidden)})"
            )
        for name in ("time_slope", "lr0", "norm_scale", "norm_floor", "loss_scale", "initial_head"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite (got {getattr(self, name)})")
        if not 0 <= self.relative_floor < math.inf:
            raise ValueError(f"relative_floor must be finite and at least 0 (got {self.relative_floor})")
        for name in ("initial_mix", "initial_decay", "initial_horizon"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite (got {getattr(self, name)})")

    @property
    def by_layer(self) -> bool:
        """Whether something is learned for each layer by name: embeddings, or an MLP."""
        return bool(self.embedding) or self.controller == "layerwise"
