"""Time a step of L3RS against Adam and SGD, alone and as a share of a training step.

    python evaluate/step_cost.py                  # the step alone, on ResNet-34 (21.3 M parameters) and at width 16
    python evaluate/step_cost.py --trials         # with other ways to compute it, which were tried
    python evaluate/step_cost.py --learned        # the other learned optimizers, and the memory that a step needs beside the state
    python evaluate/step_cost.py --share          # the step in a training step at batch 64

All arms run in one process, one after the other in every round (`l3rs.evaluation.step_costs`). Prints medians with
quartiles and the ratio to `Adam(fused=True)`, and appends a row for each arm to a CSV file in `evaluate/results`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from options import RESULTS, count, device
from torch import Tensor

from l3rs.evaluation.step_costs import FIELDS, LEARNED_FIELDS, SHARE_FIELDS, arms, learned, other_learned_optimizers, share, step_alone
from l3rs.files import append_rows
from l3rs.networks.create import resnet34
from l3rs.optimizer.kernels import ForeachKernel, Norms


class FusedBufferKernel(ForeachKernel):
    """A trial: `torch._fused_adam_` steps a buffer of zeros, which gives Adam's direction; the rest in foreach operations."""

    buffer: Sequence[Tensor] = ()

    def measure(self, grads: Sequence[Tensor], steps: Tensor, ok: Tensor) -> Norms:
        beta1, beta2, eps = self.constants["adam"]
        if not self.buffer:
            self.buffer = [torch.zeros_like(p) for p in self.params]
        torch._foreach_zero_(self.buffer)
        m, v = ([s[key] for s in self.states["adam"]] for key in ("exp_avg", "exp_avg_sq"))
        options = {"amsgrad": False, "lr": -1.0, "beta1": beta1, "beta2": beta2, "weight_decay": 0.0, "eps": eps, "maximize": False}
        torch._fused_adam_(self.buffer, list(grads), m, v, [], list(steps.unbind()), **options)
        self.wide, self.uphill = list(self.params), [list(grads), list(self.buffer)]
        weights, sgd, adam = (self._norms(tensors) for tensors in (self.params, grads, self.buffer))
        return Norms(weights, sgd, torch.stack([sgd, adam], dim=1), ok & sgd.isfinite().all())


class CompiledKernel(ForeachKernel):
    """A trial: both passes of the foreach kernel through `torch.compile`."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._first, self._second = torch.compile(self._norms_of), torch.compile(self._move)

    def _norms_of(self, grads, m, v, root, gain, beta1: float, beta2: float, eps: float):
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        uphill = [gain * a / (b.sqrt() + eps * root) for a, b in zip(m, v, strict=True)]
        return uphill, *(torch.stack([t.norm() for t in tensors]) for tensors in (self.params, grads, uphill))

    def _move(self, grads, uphill, scales):
        for i, (p, g, d) in enumerate(zip(self.params, grads, uphill, strict=True)):
            p.sub_(scales[i, 0] * g + scales[i, 1] * d)

    def measure(self, grads: Sequence[Tensor], steps: Tensor, ok: Tensor) -> Norms:
        beta1, beta2, eps = self.constants["adam"]
        root = (1 - beta2 ** steps[0]).sqrt()
        m, v = ([s[key] for s in self.states["adam"]] for key in ("exp_avg", "exp_avg_sq"))
        adam, weights, sgd, norm = self._first(list(grads), m, v, root, root / (1 - beta1 ** steps[0]), beta1, beta2, eps)
        self.uphill = [list(grads), adam]
        return Norms(weights, sgd, torch.stack([sgd, norm], dim=1), ok & sgd.isfinite().all())

    def apply(self, scales: Tensor) -> None:
        self._second(*self.uphill, scales)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--widths", type=count, nargs="+", default=[64, 16], help="widths of ResNet-34, of which 64 is full (default: 64 16)"
    )
    parser.add_argument("--rounds", type=count, default=50, help="steps of each arm (default: 50)")
    parser.add_argument("--threads", type=count, default=torch.get_num_threads(), help="threads of torch (default: all)")
    parser.add_argument("--device", type=device, default="cpu", help="where (default: cpu)")
    parser.add_argument("--trials", action="store_true", help="time other implementations too; torch.compile takes minutes")
    parser.add_argument("--learned", action="store_true", help="time the other learned optimizers instead")
    parser.add_argument("--share", action="store_true", help="time whole training steps instead; minutes on a CPU at 224 px")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder that the rows are appended in (default: evaluate/results)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.share:
        for width, pixels, rounds in ((64, 224, 3), (16, 32, 30)):
            rows = share(partial(resnet34, width), f"resnet34-w{width}", pixels, rounds, args.device)
            append_rows(args.out / "step_share.csv", rows, SHARE_FIELDS)
            for row in rows:
                times = f"{row['optimizer_ms']:9.2f} of {row['training_step_ms']:9.1f} ms"
                print(f"{row['network']:>14} {pixels:>4} px  {row['arm']:12} {times}  {row['share']:.2%}")
        return
    for width in args.widths:
        makers, last = other_learned_optimizers() if args.learned else arms(), {}
        if args.trials:
            makers["l3rs-fused-adam-buffer"] = partial(learned, kernel=FusedBufferKernel)
            last["l3rs-compiled"] = partial(learned, kernel=CompiledKernel)  # whose second pool of OpenMP threads slows the first
        rows = step_alone(width, args.rounds, args.device, makers, last, memory=args.learned)
        file, fields = ("learned_cost.csv", LEARNED_FIELDS) if args.learned else ("step_cost.csv", FIELDS)
        append_rows(args.out / file, rows, fields)
        print(f"ResNet-34 at width {width}, {rows[0]['parameters'] / 1e6:.2f} M parameters, {args.threads} threads, {args.rounds} rounds")
        for row in rows:
            spread = f"{row['q25_ms']:.2f} to {row['q75_ms']:.2f}"
            ratio = f"x{row['ratio_to_fused_adam']:.2f}"
            words = f"state {row['state_words']:.4f} words a parameter"
            beside = f", at most {row['peak_words']:.2f} beside it" if args.learned else ""
            print(f"  {row['arm']:24} {row['median_ms']:8.2f} ms ({spread:>16})  {ratio}  {words}{beside}")


if __name__ == "__main__":
    main()
