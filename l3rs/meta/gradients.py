"""Meta-gradients: the exact gradient of the evaluation loss after K steps with respect to all meta-parameters.

Reverse mode through the unroll. On the way back the vector-Jacobian products of each step are taken, from the last to the first: those
of the update, then one through the network's gradient, which is a product with its Hessian. The graphs of both are kept from the way
there, or, where K of them would fill the memory, made again from the state before each step (a checkpoint).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from l3rs.controller.decide import unflatten
from l3rs.finetuning.unroll import REFRESH, drawing
from l3rs.meta.batch_norm import batch_norm
from l3rs.meta.twice import TWICE
from l3rs.optimizer.differentiable import DifferentiableL3RS, State
from l3rs.schedules.schedule import LearnedSchedule

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class MetaGradient:
    """What one unroll gives.

    Attributes:
        theta: (n,), the gradient of the evaluation loss with respect to the meta-parameters.
        loss, accuracy: on the evaluation batch after K steps; NaN, and a gradient of zero, where the run diverged.
        train_losses: of each batch, before its step.
    """

    theta: Tensor
    loss: float
    accuracy: float
    train_losses: list[float]


def meta_gradient(
    learned: LearnedSchedule,
    network: nn.Module,
    batches: Sequence[Batch] | Callable[[int], Batch],
    steps: int,
    held_out: Batch,
    refresh: bool = False,
    last: int = REFRESH,
    checkpoint: bool = False,
    insignificant: float = 0.0,
    form: type[DifferentiableL3RS] = DifferentiableL3RS,
    back: bool = True,
    seed: int = 0,
) -> MetaGradient:
    """The gradient through one run of `steps` steps from the network's present weights, which stay as they are.

    Args:
        learned: the schedule, at whose meta-parameters the gradient is taken.
        network: on the device and in the dtype of the run; all parameters that require a gradient are trained.
        batches: (inputs, labels) of each step, or a function that gives them; asked for twice.
        steps: K.
        held_out: the evaluation batch.
        refresh: evaluates with BatchNorm's mean statistics of the last batches, at the last weights, as `unroll` refreshes them; else with
            its running ones.
        last: average over at most this many batches.
        checkpoint: whether graphs are made again on the way back, which needs less memory and a forward-backward pass more for each step.
        insignificant: a layer passes nothing back through its gradient in a step in which the change of the loss that the layer could make
            (the norm of its gradient times that of its weights) is below this share of the largest. 0 is the exact gradient. Where a
            layer's gradient is next to nothing, as behind a scale that starts at 0, its direction turns with every rounding, and the
            exact gradient is as good as infinite.
        form: what decides on each step, and from which meta-parameters.
        back: whether to go back through the run; else the gradient is zero.
        seed: what dropout draws is a function of it and the step, there and back.

    Raises:
        ValueError: a value is not what it must be, or the schedule mixes a direction that has no derivative.
    """
    if steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1 (got {steps})")
    batch = batches if callable(batches) else batches.__getitem__
    return Unroll(learned, network, batch, steps, held_out, refresh, last, checkpoint, insignificant, form, seed).gradient(back)


class _Graph(NamedTuple):
    """The loss of a step at `theta`, (n,), its gradient, and the batch's statistics in each BatchNorm, by buffer."""

    theta: Tensor
    g: Tensor
    loss: Tensor
    seen: dict[str, Tensor]


class _Update(NamedTuple):
    """One update: the state, gradient, loss and meta-parameters that it is differentiated by, and the state that it leads to."""

    state: State
    g: Tensor
    loss: Tensor
    meta: Tensor
    after: State


class Unroll:
    """One run there and back; the arguments are those of `meta_gradient`."""

    def __init__(
        self,
        learned: LearnedSchedule,
        network: nn.Module,
        batch: Callable[[int], Batch],
        steps: int,
        held_out: Batch,
        refresh: bool,
        last: int,
        checkpoint: bool,
        insignificant: float,
        form: type[DifferentiableL3RS] = DifferentiableL3RS,
        seed: int | None = None,
    ) -> None:
        self.seed = seed  # None leaves torch's generators alone, as where steps are captured
        self.checkpoint, self.insignificant = checkpoint, insignificant
        self.network, self.batch, self.steps, self.held_out = network, batch, steps, held_out
        self.refresh, self.last = refresh, min(last, steps)
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.shapes = {name: p.shape for name, p in trained.items()}
        self.last_channels = {name for name, p in trained.items() if p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last)}
        self.sizes = [p.numel() for p in trained.values()]
        self.first = torch.cat([self.flat(name, p.detach()) for name, p in trained.items()])
        self.optimizer = form(learned, dict(network.named_parameters()), steps)
        self.meta_shapes = self.optimizer.meta_shapes
        self.meta_theta = learned.theta.detach().to(self.first)
        self.buffers = {name: b.detach().clone() for name, b in network.named_buffers()}
        self.layers = _normalizations(network)
        self.before = {layer: int(getattr(module, "num_batches_tracked", None) or 0) for layer, module in self.layers.items()}

    def share(self, layer: str, k: int) -> float:
        """How much of step k's statistics a layer takes into its running ones; 0 where they are refreshed at the end."""
        momentum = self.layers[layer].momentum
        if self.refresh:
            return 0.0
        return 1 / (self.before[layer] + k + 1) if momentum is None else float(momentum)  # None: a mean over all so far, pretraining too

    # -- there and back ----------------------------------------------------------------------------------------------------------------

    def gradient(self, back: bool = True) -> MetaGradient:
        keep = back and not self.checkpoint
        nothing = MetaGradient(torch.zeros_like(self.meta_theta), math.nan, math.nan, [])
        state, losses, buffers = self.optimizer.start(self.first), [], dict(self.buffers)
        kept: list[State | tuple[_Graph, _Update]] = []  # of each step: what it came from, or all that it made
        for k in range(self.steps):
            graph = self.graph(state.theta, k, keep)
            losses.append(graph.loss.item())
            if not math.isfinite(losses[-1]) or not torch.linalg.vector_norm(graph.g.detach()).isfinite():
                return nothing
            with torch.no_grad():
                self.take_in(buffers, graph.seen, k)
            update = self.update(state, graph, k, keep)
            if back:
                kept.append((graph, update) if keep else state)
            state = _detached(update.after)
        ends, seen = state.theta.detach(), list[dict[str, Tensor]]()
        if self.refresh:
            mean, seen = self._mean_statistics(ends.requires_grad_(), keep)
            buffers |= mean
        loss, accuracy, of_theta, of_buffers = self.evaluate(ends, buffers)
        if not loss.isfinite():
            return nothing
        if not back:
            return replace(nothing, loss=loss.item(), accuracy=accuracy.item(), train_losses=losses)
        if self.refresh:
            of_theta = of_theta + self._through_mean(ends, of_buffers, seen)
            of_buffers = {}
        of_meta = self._back(kept, of_theta, of_buffers)
        return MetaGradient(of_meta, loss.item(), accuracy.item(), losses)

    def evaluate(self, theta: Tensor, buffers: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """The evaluation loss and accuracy, and the derivative of the loss with respect to theta and BatchNorm's statistics."""
        ends = theta.detach().requires_grad_()
        at = {name: b.detach().requires_grad_() for name, b in buffers.items() if name.endswith(("running_mean", "running_var"))}
        with torch.enable_grad(), _Statistics(at, recording=False):
            logits = functional_call(self.network.eval(), self._parameters(ends) | buffers | at, (self.held_out[0],))
            loss = F.cross_entropy(logits, self.held_out[1])
        self.network.train()
        found = torch.autograd.grad(loss, [ends, *at.values()], allow_unused=True)
        of_buffers = {name: g for name, g in zip(at, found[1:], strict=True) if g is not None}
        return loss.detach(), (logits.argmax(1) == self.held_out[1]).double().mean(), found[0], of_buffers

    def _back(self, kept: list[State | tuple[_Graph, _Update]], of_theta: Tensor, of_buffers: dict[str, Tensor]) -> Tensor:
        """The gradient with respect to the meta-parameters, from that with respect to the end of the run."""
        total = torch.zeros_like(self.meta_theta)
        of_state = self.optimizer.start(torch.zeros_like(of_theta))._replace(theta=of_theta)
        for k in reversed(range(self.steps)):
            shares = {name: self.share(name.rpartition(".")[0], k) for name in of_buffers}
            passed = {name: share * of_buffers[name] for name, share in shares.items() if share}
            step = kept.pop()
            graph, update = self._again(step, k) if isinstance(step, State) else step
            passed = {name: g for name, g in passed.items() if graph.seen[name].requires_grad}
            of_state, of_g, of_loss, of_meta = self.through_update(update, of_state)
            total += of_meta
            outputs, weights = [graph.g, graph.loss, *(graph.seen[name] for name in passed)], [of_g, of_loss, *passed.values()]
            (through,) = torch.autograd.grad(outputs, graph.theta, weights)
            of_state = of_state._replace(theta=of_state.theta + through)
            of_buffers = {name: (1 - share) * of_buffers[name] for name, share in shares.items()}
        return total

    def _again(self, state: State, k: int) -> tuple[_Graph, _Update]:
        """Both graphs of a step, from the state before it."""
        graph = self.graph(state.theta, k, keep=True)
        return graph, self.update(state, graph, k, keep=True)

    def update(self, state: State, graph: _Graph, k: int | Tensor, keep: bool) -> _Update:
        """The update of step k; `keep`: with the graph that it is differentiated through."""
        state, (g, loss, meta) = _detached(state, keep), (t.detach().requires_grad_(keep) for t in (graph.g, graph.loss, self.meta_theta))
        with torch.set_grad_enabled(keep):
            after = self.optimizer.step(unflatten(meta, self.meta_shapes), state, g, loss, k)
        return _Update(state, g, loss, meta, after)

    def through_update(self, update: _Update, of_after: State) -> tuple[State, Tensor, Tensor, Tensor]:
        """The vector-Jacobian products of one update: with respect to the state before it, the gradient, the loss, the meta-parameters."""
        inputs = [*tensors(update.state), update.g, update.loss, update.meta]
        needed = [(o, w) for o, w in zip(tensors(update.after), tensors(of_after), strict=True) if o.requires_grad]
        found = torch.autograd.grad([o for o, _ in needed], inputs, [w for _, w in needed], allow_unused=True)
        *of, of_g, of_loss, of_meta = [torch.zeros_like(t) if d is None else d for t, d in zip(inputs, found, strict=True)]
        return State(of[0], of[1], tuple(of[2:])), self._significant(of_g, update.state.theta, update.g), of_loss, of_meta

    def _significant(self, of_g: Tensor, theta: Tensor, g: Tensor) -> Tensor:
        """Without the layers that can change the loss by next to nothing, see `insignificant`."""
        if not self.insignificant:
            return of_g
        change = self.optimizer.norms(g.detach()) * self.optimizer.norms(theta.detach())
        kept = (change >= self.insignificant * change.max()).unbind()
        return torch.cat([torch.where(k, part, 0) for part, k in zip(of_g.split(self.sizes), kept, strict=True)])  # it may be infinite

    # -- the network -------------------------------------------------------------------------------------------------------------------

    def _parameters(self, theta: Tensor) -> dict[str, Tensor]:
        """Views by name. (The derivative of `split` is one concatenation.)"""
        views = {}
        for (name, shape), part in zip(self.shapes.items(), theta.split(self.sizes), strict=True):
            if name in self.last_channels:
                out, into, height, width = shape
                views[name] = part.view(out, height, width, into).permute(0, 3, 1, 2)
            else:
                views[name] = part.view(shape)
        return views

    def flat(self, name: str, p: Tensor) -> Tensor:
        """The elements in the order of memory, so that kernels need not be turned for each convolution."""
        return (p.permute(0, 2, 3, 1) if name in self.last_channels else p).flatten()

    def graph(self, theta: Tensor, k: int, keep: bool) -> _Graph:
        """The gradient of step k; `keep`: with the graph that it and the statistics are differentiated through."""
        theta = theta.detach().requires_grad_()
        loss, seen = self.loss(theta, self.batch(k), recording=keep, step=k)
        (g,) = torch.autograd.grad(loss, theta, create_graph=keep)
        return _Graph(theta, g, loss, seen)

    def loss(self, theta: Tensor, batch: Batch, recording: bool, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss in train mode, and the batch's statistics in each BatchNorm, by the buffers that they go into.

        Args:
            recording: whether these statistics have a graph.
            step: that dropout draws for.
        """
        scratch = {name: b.clone() for name, b in self.buffers.items()}
        drawn = nullcontext() if self.seed is None else drawing(theta.device, self.seed, step)
        with drawn, torch.enable_grad(), _Statistics(scratch, recording) as statistics:
            logits = functional_call(self.network, self._parameters(theta) | scratch, (batch[0],))
            loss = F.cross_entropy(logits, batch[1])
        return loss, statistics.seen

    def take_in(self, buffers: dict[str, Tensor], seen: dict[str, Tensor], k: int) -> None:
        for name, value in seen.items():
            share = self.share(name.rpartition(".")[0], k)
            buffers[name] = (1 - share) * buffers[name] + share * value if share else buffers[name]

    def _mean_statistics(self, theta: Tensor, keep: bool) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """The mean of the last batches' statistics at these weights; `keep`: and those of each batch, with their graphs."""
        total, seen = dict[str, Tensor](), list[dict[str, Tensor]]()
        for k in range(self.steps - self.last, self.steps):
            _, found = self.loss(theta, self.batch(k), recording=keep, step=k)
            for name, value in found.items():
                total[name] = total.get(name, 0) + value.detach() / self.last
            if keep:
                seen.append(found)
        return total, seen

    def _through_mean(self, theta: Tensor, of_buffers: dict[str, Tensor], seen: list[dict[str, Tensor]]) -> Tensor:
        """The vector-Jacobian product of `_mean_statistics`, batch by batch."""
        total = torch.zeros_like(theta)
        for k in reversed(range(self.steps - self.last, self.steps)) if of_buffers else ():
            found = seen.pop() if seen else self.loss(theta, self.batch(k), recording=True, step=k)[1]
            weights = {name: g / self.last for name, g in of_buffers.items() if found[name].requires_grad}
            if weights:
                (through,) = torch.autograd.grad([found[name] for name in weights], theta, list(weights.values()), allow_unused=True)
                total = total if through is None else total + through
        return total


def tensors(state: State) -> list[Tensor]:
    return [state.theta, state.averages, *state.moments]


def _detached(state: State, leaf: bool = False) -> State:
    """The same numbers without their graph; `leaf`: to be differentiated by."""
    theta, averages, *moments = (t.detach().requires_grad_(leaf) for t in tensors(state))
    return State(theta, averages, tuple(moments))


def _normalizations(network: nn.Module) -> dict[str, Any]:
    """Layers that keep running statistics, by name."""
    return {name: m for name, m in network.named_modules() if getattr(m, "running_mean", None) is not None}


class _Statistics(TorchFunctionMode):
    """Sees every `F.batch_norm` of a network, whatever module calls it.

    In train mode it takes the statistics of the batch; in evaluation it lets the gradient through to the running ones, as torch does not.

    Args:
        buffers: the running statistics that the network is called with, by name.
        recording: whether all is to be differentiated twice: the batch's statistics have a graph, and operations that cannot be are
            written as ones that can, see `TWICE`.
    """

    def __init__(self, buffers: dict[str, Tensor], recording: bool) -> None:
        super().__init__()
        self.names = {id(b): name for name, b in buffers.items()}
        self.recording, self.seen = recording, dict[str, Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return (TWICE.get(func, func) if self.recording else func)(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        x: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        known = mean is not None and var is not None and id(mean) in self.names
        if not known:
            return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
        assert mean is not None
        assert var is not None
        if not training:
            shape = (1, -1, *[1] * (x.dim() - 2))
            scale = (var + eps).rsqrt() * (1 if weight is None else weight)
            shift = (0 if bias is None else bias) - mean * scale
            return x * scale.view(shape) + shift.view(shape)
        if self.recording:
            y, of_mean, of_var = batch_norm(x, weight, bias, eps)
            self.seen |= {self.names[id(mean)]: of_mean, self.names[id(var)]: of_var}
            return y
        y = F.batch_norm(x, mean, var, weight, bias, True, 1.0, eps)  # a momentum of 1 leaves the batch's own statistics there
        self.seen |= {self.names[id(mean)]: mean, self.names[id(var)]: var}
        return y
