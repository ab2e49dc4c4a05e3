"""The config of a learned schedule: every choice that the paper leaves open is a field here."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

UNITS = ("rms", "l2", "relative", "size")
SIGNALS = ("log_weight_norm", "log_grad_norm", "loss", "log_relative_grad")
DIRECTION_NORMS = ("all", "scale-free")
CONTROLLERS = ("shared", "layerwise", "global")
LARGEST = 4096  # of numbers that set sizes: a file that says more is damaged, or meant to fill the memory


@dataclass(frozen=True)
class L3RSConfig:
    """Directions, features, controller and unit of one learned schedule; kept in its checkpoint.

    Attributes:
        directions: base directions in the order of the mixing coefficients mu [paper: SGD and Adam].
        signals: what the adaptive features average [paper: log norm of the weights, log norm of the gradient, and the loss];
            `log_relative_grad` is the log of the layer's size, as in the unit `size`, times the norm of its gradient: the change of the
            loss, to first order, when the layer moves by its own size [choice]. Without `loss` a step needs none.
        ema_factors: smoothing factors of the adaptive features; 0 is the raw value [choice].
        time_points: number of reference points of relative time, from 0 to 1 inclusive [choice].
        time_slope: a in `tanh(a * (k / K - t_i))` [choice].
        time_scales: scales s_i, in steps, of absolute time `tanh(K / s_i - 1)` [choice].
        controller: `shared`, one MLP for all layers [paper: the default]; `layerwise`, one for each; `global`, one lambda and one mu
            for all layers, from the mean of their features [choice].
        descriptors: shows the controller what each layer is, see `l3rs.controller.describe` [choice].
        direction_norms: the directions whose log norm is a feature: `all` [paper], or `scale-free`, those that do not change when the
            weights are multiplied by a number and their gradients divided by it [choice].
        embedding: length of the meta-learned vector of each layer [paper: 16]; 0 is no such vector; only `shared` may have one.
        hidden: widths of the two hidden layers [choice].
        unit: the length of a step at lambda = 1. `rms`: lr0 * sqrt(numel), `l2`: 1, `relative`: lr0 * max(norm of weights, floor); `size`:
            lr0 * the layer's size, which is the norm of its weights, for a bias that of its kernel, and for a shift that of its scale;
            for the head it is the length that moves each logit by 1, times head_logits in the place of lr0, see
            `l3rs.controller.layer_sizes.Sizes` [choice].
        lr0: step size per element at lambda = 1, for the units `rms` and `relative`, or as a share of the layer's size [choice].
        head_logits: how far a step at lambda = 1 may move a logit through the head's weights, or its biases, for the unit `size` [choice].
        feature_rms: root mean square of the head's inputs where the head has no bias, whose gradient tells it, for `size` [choice].
        feature_rms_cap: the largest that is believed, for `size` [choice].
        relative_floor: the floor of `relative`; of `size`, for each element [choice].
        norm_scale: divides log root-mean-squares before the MLP [choice].
        norm_floor: added to a root-mean-square before its logarithm [choice].
        loss_scale: divides the loss before the MLP [choice].
        initial_mix: logit, in nats, that the initial controller gives the last direction over the others [choice].
        initial_decay: nats by which the initial controller lowers log lambda from the first step to the last [choice].
        initial_horizon: the initial controller's lambda is proportional to K to the power of minus this, and 1 at K = 10 [choice].
        initial_head: how many times larger a step the initial controller gives the new head, where embeddings or descriptors tell it
            [choice].
    """

    directions: tuple[str, ...] = ("sgd", "adam")
    signals: tuple[str, ...] = ("log_weight_norm", "log_grad_norm", "loss")
    ema_factors: tuple[float, ...] = (0.5, 0.9, 0.99)
    time_points: int = 11
    time_slope: float = 10.0
    time_scales: tuple[float, ...] = tuple(10 ** (1 + i / 2) for i in range(7))
    controller: str = "shared"
    descriptors: bool = False
    direction_norms: str = "all"
    embedding: int = 16
    hidden: tuple[int, int] = (32, 32)
    unit: str = "rms"
    lr0: float = 5e-3
    head_logits: float = 3.0
    feature_rms: float = 1.0
    feature_rms_cap: float = 4.0
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
        for name, known in (("unit", UNITS), ("controller", CONTROLLERS), ("direction_norms", DIRECTION_NORMS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)} (got {getattr(self, name)!r})")
        unknown = [signal for signal in self.signals if signal not in SIGNALS]
        if unknown:
            raise ValueError(f"each of signals must be one of {', '.join(SIGNALS)} (got {unknown[0]!r})")
        if len(set(self.signals)) < len(self.signals):
            raise ValueError(f"signals must name each one once (got {', '.join(self.signals)})")
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
        lengths = ("lr0", "head_logits", "feature_rms", "feature_rms_cap")
        positive = ("time_slope", *lengths, "norm_scale", "norm_floor", "loss_scale", "initial_head")
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite (got {getattr(self, name)})")
        if not 0 <= self.relative_floor < math.inf:
            raise ValueError(f"relative_floor must be finite and at least 0 (got {self.relative_floor})")
        for name in ("initial_mix", "initial_decay", "initial_horizon"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite (got {getattr(self, name)})")

    @property
    def sees_loss(self) -> bool:
        """Whether every step needs the loss."""
        return "loss" in self.signals

    @property
    def sized(self) -> bool:
        """Whether the sizes of layers matter, to lengths or to features."""
        return self.unit == "size" or "log_relative_grad" in self.signals

    @property
    def by_layer(self) -> bool:
        """Whether layers have meta-parameters of their own, by name: embeddings, or an MLP."""
        return bool(self.embedding) or self.controller == "layerwise"


ANY_NETWORK = L3RSConfig(
    signals=("log_relative_grad",),
    descriptors=True,
    direction_norms="scale-free",
    embedding=0,
    unit="size",
    lr0=0.02,
    initial_decay=1.5,
    initial_head=1.0,
)
"""The form of a schedule for any network: what it sees and how far it goes stay the same when the network is written otherwise [choice].

Multiply a kernel before a normalization by a number: the network is the same function, its gradient is divided by that number, and a run
is the same run. Before anything is learned, a layer moves by 2% of its size in the first of 10 steps."""
