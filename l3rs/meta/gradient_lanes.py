"""Meta-gradients of several runs side by side on one device: what `meta_gradient` finds, in steps that are captured once for all runs.

A step there and a step back are one CUDA graph each, whatever K and k are: the clock and K are numbers on the device. The way back makes
each step's graph of derivatives again, from the state before the step, which is kept. Nothing is asked of the device before the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from l3rs.finetuning.captured import Captured, OnStream, Steps, finish
from l3rs.finetuning.lanes import LoadedTask
from l3rs.finetuning.unroll import REFRESH
from l3rs.meta.gradients import MetaGradient, Unroll, tensors
from l3rs.schedules.schedule import LearnedSchedule


class GradientLane(OnStream):
    """One network on a device, for runs that follow each other.

    Args:
        learned: gives the form of the schedule; its meta-parameters may be others in every run.
        network: all parameters that require a gradient are trained.
        refresh: gives BatchNorm the mean statistics of the last batches, at the last weights; else it has its running ones.
        last: average over at most this many batches.
        insignificant: see `meta_gradient`.

    Raises:
        ValueError: as `meta_gradient`; or a BatchNorm has no momentum, whose mean over all batches depends on k.
    """

    def __init__(
        self, learned: LearnedSchedule, network: nn.Module, refresh: bool = False, last: int = REFRESH, insignificant: float = 0.0
    ) -> None:
        super().__init__(next(network.parameters()).device)
        self.learned, self.network, self.refresh, self.last, self.insignificant = learned, network, refresh, last, insignificant
        self.sizes: object = None  # until the first task says how large a batch is

    def run(self, theta: Tensor, ready: Callable[[], nn.Module], task: LoadedTask) -> Steps[Callable[[], MetaGradient]]:
        """Goes through a run on all batches of a task, there and back.

        Args:
            theta: (n,), the meta-parameters.
            ready: resets the network, and gives it the head of the task.
            task: gives the batches.

        Returns:
            What reads the meta-gradient.
        """
        self._prepare(ready, task)
        steps, u, state = len(task.inputs), self.unroll, self.state
        network = ready().train()
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        state.theta.copy_(torch.cat([u.flat(name, p.detach()) for name, p in trained.items()]))
        _fill([state.averages, *state.moments, self.total], 0.0)
        for name, b in network.named_buffers():
            self.buffers[name].copy_(b)
            u.buffers[name].copy_(b)
        u.meta_theta.copy_(theta)
        self.steps.fill_(float(steps))
        kept = [torch.empty(steps, *t.shape, dtype=t.dtype, device=t.device) for t in tensors(state)]
        losses = torch.empty(steps, dtype=state.theta.dtype, device=self.device)
        for k in range(steps):
            for to, t in zip(kept, tensors(state), strict=True):
                to[k].copy_(t)
            self._load(task, k)
            self.there()
            losses[k] = self.loss
            yield
        seen = range(max(0, steps - self.last), steps) if self.refresh else range(0)
        self.share.fill_(1 / max(1, len(seen)))
        _fill(self.mean.values(), 0.0)
        for k in seen:
            self._load(task, k)
            self.see()
            yield
        for to, t in zip(self.held_out, task.held_out, strict=True):
            to.copy_(t)
        self.end()
        for k in seen:
            self._load(task, k)
            self.through()
            yield
        for k in reversed(range(steps)):
            for t, was in zip(tensors(state), kept, strict=True):
                t.copy_(was[k])
            self._load(task, k)
            self.back()
            yield
        found, loss, accuracy = self.total.clone(), self.found[0].clone(), self.found[1].clone()

        def read() -> MetaGradient:
            if not (losses.isfinite().all() and loss.isfinite()):
                return MetaGradient(torch.zeros_like(found), math.nan, math.nan, [])
            return MetaGradient(found, loss.item(), accuracy.item(), losses.tolist())

        return read

    def _load(self, task: LoadedTask, k: int) -> None:
        self.batch[0].copy_(task.inputs[k])
        self.batch[1].copy_(task.labels[k])
        self.clock.fill_(float(k))

    def _prepare(self, ready: Callable[[], nn.Module], task: LoadedTask) -> None:
        """Captures what is done in every run, for tasks of these sizes; the network's numbers are others afterwards."""
        sizes = task.inputs.shape[1:], task.held_out[0].shape
        if self.sizes == sizes:
            return
        finish(self.device)
        self.batch = task.inputs[0].clone(), task.labels[0].clone()
        self.held_out = task.held_out[0].clone(), task.held_out[1].clone()
        made_of = ready().train(), lambda _: self.batch, 1, self.held_out, self.refresh, self.last, True, self.insignificant
        self.unroll = u = Unroll(self.learned, *made_of)
        without = [name for name, m in u.layers.items() if m.momentum is None]
        if without:
            raise ValueError(f"BatchNorm must have a momentum to be captured, and {without[0]} has none")
        self.steps, self.clock, self.share, self.loss = (u.first.new_zeros(()) for _ in range(4))
        u.optimizer.total_steps = self.steps
        u.meta_theta = u.meta_theta.clone()
        self.state, self.of = u.optimizer.start(u.first.clone()), u.optimizer.start(torch.zeros_like(u.first))
        self.total = torch.zeros_like(u.meta_theta)
        self.buffers = {name: b.clone() for name, b in u.buffers.items()}
        statistical = [name for name in u.buffers if name.endswith(("running_mean", "running_var"))]
        self.mean, self.of_buffers = ({name: torch.zeros_like(u.buffers[name]) for name in statistical} for _ in range(2))
        self.steps.fill_(1.0)
        pieces: list[Captured] = []
        for work in (self._there, self._see, self._end, self._through, self._back):
            pieces.append(Captured(work, self.device, pieces[0] if pieces else None))
            pieces[-1].capture()
        self.there, self.see, self.end, self.through, self.back = pieces
        self.sizes = sizes

    # -- what is captured --------------------------------------------------------------------------------------------------------------

    def _there(self) -> None:
        """One step from `state`; takes the batch's statistics into the running ones."""
        u = self.unroll
        graph = u.graph(self.state.theta, 0, keep=False)
        with torch.no_grad():
            buffers = dict(self.buffers)
            u.take_in(buffers, {name: t.detach() for name, t in graph.seen.items()}, 0)
            after = u.update(self.state, graph, self.clock, keep=False).after
            _copy([*tensors(self.state), *self.buffers.values(), self.loss], [*tensors(after), *buffers.values(), graph.loss.detach()])

    def _see(self) -> None:
        """Takes the batch's statistics at the last weights into their mean."""
        with torch.no_grad():
            _, seen = self.unroll.loss(self.state.theta, self.batch, recording=False)
            for name, value in seen.items():
                self.mean[name] += value.detach() * self.share

    def _end(self) -> None:
        """The evaluation, and the derivative of its loss."""
        buffers = self.buffers | (self.mean if self.refresh else {})
        loss, accuracy, of_theta, of_buffers = self.unroll.evaluate(self.state.theta, buffers)
        self.found = loss, accuracy
        with torch.no_grad():
            _fill([self.of.averages, *self.of.moments, *self.of_buffers.values()], 0.0)
            self.of.theta.copy_(of_theta)
            for name, of in of_buffers.items():
                self.of_buffers[name].copy_(of)

    def _through(self) -> None:
        """The way back of `_see`."""
        if not self.of_buffers:
            return
        theta = self.state.theta.detach().requires_grad_()
        _, seen = self.unroll.loss(theta, self.batch, recording=True)
        weights = [self.of_buffers[name] * self.share for name in seen]
        (through,) = torch.autograd.grad(list(seen.values()), theta, weights)
        self.of.theta.add_(through)

    def _back(self) -> None:
        """The way back of `_there`; `state` is that from before the step."""
        u = self.unroll
        graph = u.graph(self.state.theta, 0, keep=True)
        of, of_g, of_loss, of_meta = u.through_update(u.update(self.state, graph, self.clock, keep=True), self.of)
        shares = {name: u.share(name.rpartition(".")[0], 0) for name in graph.seen}
        passed = {name: share * self.of_buffers[name] for name, share in shares.items() if share}
        outputs = [graph.g, graph.loss, *(graph.seen[name] for name in passed)]
        (through,) = torch.autograd.grad(outputs, graph.theta, [of_g, of_loss, *passed.values()])
        with torch.no_grad():
            self.total += of_meta
            _copy(tensors(self.of), tensors(of._replace(theta=of.theta + through)))
            for name, share in shares.items():
                self.of_buffers[name] *= 1 - share


def _copy(to: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    for t, value in zip(to, found, strict=True):
        t.copy_(value)


def _fill(tensors: Iterable[Tensor], value: float) -> None:
    for t in tensors:
        t.fill_(value)
