"""Draw the pictures of docs/idea.md from real runs of the paper's specialist.

    python docs/pictures/draw.py                # about a minute on one core

Every picture is of the same runs: the shipped ResNet-34 on tasks of 25 meta-validation classes of Icons, 50 steps long, with L3RS
(`icons-resnet34-paper`) and with Adam whose cosine learning rate was tuned for this length; means over the tasks. `meta-training.png` is
of the log of the meta-training that made the schedule. The diagrams beside them, `step.svg` and `nes.svg`, are drawn by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from l3rs import L3RS
from l3rs.finetuning.baselines import adam_cosine, tuned_learning_rate
from l3rs.finetuning.workbench import workbench
from l3rs.plots import tidy

KINDS = ("first stage", "third stage", "normalization", "head")
STYLES = {
    "first stage": {"color": "#56B4E9"},
    "third stage": {"color": "#0072B2"},
    "normalization": {"color": "#009E73", "linestyle": "--"},
    "head": {"color": "#D55E00", "linewidth": 2.4},
}  # Okabe and Ito's palette


def kind_of(name: str, p: torch.Tensor) -> str | None:
    """Which line of a picture a layer belongs to, if any."""
    if name.startswith("fc."):
        return "head"
    if p.dim() == 1:
        return "normalization"
    return {"layer1": "first stage", "layer3": "third stage"}.get(name.split(".")[0])


def watch(
    network: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[torch.Tensor, torch.Tensor]], after: Callable[[], object]
) -> pd.DataFrame:
    """Fine-tunes, and gives how far each layer moved in each step: root mean square over its elements; layers by steps.

    Args:
        after: called after each step.
    """
    moved = []
    network.train()
    for inputs, labels in batches:
        before = {name: p.detach().clone() for name, p in network.named_parameters()}
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step(lambda loss=loss: loss)
        after()
        moved.append({name: float((p.detach() - before[name]).square().mean().sqrt()) for name, p in network.named_parameters()})
    return pd.DataFrame(moved).T


def runs(tasks: int, steps: int) -> dict[str, pd.DataFrame]:
    """Layers by steps, means over the tasks: `lambda` and `mu` (of Adam) of L3RS, and how far layers `moved` with it, and with `adam`."""
    bench = workbench()
    distribution = bench.tasks("meta-validation")
    found: dict[str, list[pd.DataFrame]] = {"lambda": [], "mu": [], "moved": [], "adam": []}
    for seed in range(tasks):
        task = distribution.draw(seed, steps)
        batches = [task.batch(distribution.images, k) for k in range(steps)]
        network = bench.network_for(task.head_seed)
        optimizer, decided = L3RS(network.named_parameters(), total_steps=steps, learned="icons-resnet34-paper"), []
        found["moved"].append(watch(network, optimizer, batches, lambda o=optimizer, d=decided: d.append(o.decisions())))
        found["lambda"].append(pd.concat([d["lambda"] for d in decided], axis=1, keys=range(steps)))
        found["mu"].append(pd.concat([d["mu_adam"] for d in decided], axis=1, keys=range(steps)))
        network = bench.network_for(task.head_seed)
        adam = adam_cosine(network, tuned_learning_rate("adam-cosine", steps), steps)
        found["adam"].append(watch(network, adam.optimizer, batches, adam.scheduler.step))
    return {name: sum(tables) / tasks for name, tables in found.items()}


def save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    print(f"Wrote {path}.")


def heat_map(values: pd.DataFrame, path: Path, label: str, **colours: object) -> None:
    """Layers from the input (top) to the head (bottom), by step."""
    figure = Figure(figsize=(6, 4.2))
    axes = figure.subplots()
    stages = [name.split(".")[0] for name in values.index]
    stages = ["stem" if s in ("conv1", "bn1") else "head" if s == "fc" else s.replace("layer", "stage ") for s in stages]
    starts = [i for i, s in enumerate(stages) if i == 0 or s != stages[i - 1]]
    edges = [*starts, len(stages)]
    image = axes.imshow(values, aspect="auto", interpolation="nearest", extent=(0.5, values.shape[1] + 0.5, len(stages), 0), **colours)
    axes.set_yticks([(a + b) / 2 for a, b in pairwise(edges)], [stages[a] for a in starts])
    axes.hlines(starts[1:], 0.5, values.shape[1] + 0.5, color="white", linewidth=1)
    axes.tick_params(left=False)
    axes.set(xlabel="step")
    figure.colorbar(image, ax=axes, label=label, pad=0.02)
    save(figure, path)


def step_sizes(moved: pd.DataFrame, adam: pd.DataFrame, path: Path) -> None:
    """How far an element moves in a step, by kind of layer: L3RS to the left, Adam to the right."""
    bench = workbench()
    kinds = {name: kind_of(name, p) for name, p in bench.network.named_parameters()}
    figure = Figure(figsize=(6.6, 3.3))
    both = figure.subplots(1, 2, sharey=True)
    for axes, table, title in zip(both, (moved, adam), ("L3RS", "Adam, cosine learning rate"), strict=True):
        for kind in KINDS:
            rows = table.loc[[name for name in table.index if kinds[name] == kind]]
            axes.plot(np.arange(1, table.shape[1] + 1), np.exp(np.log(rows).mean()), label=kind, **STYLES[kind])
        axes.set(title=title, xlabel="step", yscale="log")
        tidy(axes)
    both[0].set_ylabel("an element moves by")
    both[0].set_ylim(bottom=float(moved.loc["conv1.weight"].min()) / 5)
    both[0].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    save(figure, path)


def meta_training(path: Path) -> None:
    """What meta-training made of the schedule, generation by generation."""
    with resources.files("l3rs.schedules").joinpath("checkpoints", "icons-resnet34-paper.csv").open() as file:
        curve = pd.read_csv(file)
    validated = curve.dropna(subset=["validation_loss"])
    figure = Figure(figsize=(6, 2.8))
    axes = figure.subplots()
    axes.plot(curve.generation, curve.mean_loss, color="#56B4E9", linewidth=1, label="mean of the candidates of a generation")
    axes.plot(
        validated.generation, validated.validation_loss, color="black", marker="o", markersize=4, label="the centre, on meta-validation"
    )
    axes.set(xlabel="generation", ylabel="loss after K steps", ylim=(0, None))
    tidy(axes)
    axes.legend(frameon=False, fontsize=9)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=8, help="tasks that are averaged over (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="length of the runs; one that Adam was tuned for (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the pictures (default: that of this file)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = runs(args.tasks, args.steps)
    heat_map(found["lambda"], args.out / "lambda.png", "lambda", norm=LogNorm(), cmap="viridis")
    heat_map(found["mu"], args.out / "mu.png", "share of Adam in the mix", cmap="cividis")
    step_sizes(found["moved"], found["adam"], args.out / "step-sizes.png")
    meta_training(args.out / "meta-training.png")


if __name__ == "__main__":
    main()
