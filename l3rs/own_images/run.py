"""The run: looks at the images, trains every optimizer on the same batches, evaluates, and reports."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from l3rs.data.decode import BrokenImage, open_image
from l3rs.data.trees import ImageTree, read_test
from l3rs.extras import require
from l3rs.files import write_atomically
from l3rs.lightning.data import ImageFolderDataModule
from l3rs.networks.batch_norms import batch_norms, try_one_image
from l3rs.own_images.classifier import FILE, load
from l3rs.own_images.config import OwnImagesConfig
from l3rs.own_images.evaluation import evaluate
from l3rs.own_images.folder import Folder, check_outside
from l3rs.own_images.keeper import rank
from l3rs.own_images.pictures import plot_curves
from l3rs.own_images.plan import Plan, plan
from l3rs.own_images.rivals import Rival
from l3rs.own_images.training import Stopped, Training
from l3rs.processes import exit_code
from l3rs.schedules.find import GENERALIST, Chosen, resolve
from l3rs.schedules.learned import identity, wrong_tool
from l3rs.schedules.seal import fingerprint
from l3rs.text import first_line, printable, table

__all__ = ["Stopped", "finetune_own"]
FREE = ("data", "labels", "out", "workers", "compare", "logger")  # may change: images are known by names and sizes, baselines may be added
UNLIKE = 3.0  # times as many images in the largest class as in the smallest, from which on it is told [choice]
LOOKED_AT = 20  # images, to see whether all are grey


def finetune_own(config: OwnImagesConfig) -> pd.DataFrame:
    """Looks at the images, trains the remaining optimizers, and writes the results; returns the summary, a row an optimizer.

    Raises:
        ValueError: the images, the weights, the schedule, or the folder cannot be used. Nothing was trained then.
    """
    check_outside(config.folder, config.data)
    if "wandb" in config.logger:
        require("--logger wandb", "wandb")
    data = ImageFolderDataModule(
        config.data, batch_size=config.batch_size, transform=config.transform, augment=config.augmentation, mixup=config.mixup,
        cutmix=config.cutmix, balance=config.balance == "sampling", labels=config.labels, seed=config.seed, workers=config.workers,
    )  # fmt: skip
    tested = None if data.multilabel else read_test(data.tree.root, data.classes)
    for line in found(data, config):
        print(line, flush=True)
    network = config.network(data.num_classes)
    schedule = None if config.head_only else _schedule(config, network)
    _try(network, config, data.num_classes, data.batch_size)
    planned = plan(
        data.train_images, int(data.tree.validation.sum()), data.batch_size * config.devices, steps=config.steps, epochs=config.epochs,
        every=config.validate_every,
    )  # fmt: skip
    data.batches_per_epoch = planned.steps
    about = {k: v for k, v in asdict(config).items() if k not in FREE} | {
        "steps": planned.steps,
        "validate_every": planned.validate_every,
        "images": _fingerprint(data),
        "network": fingerprint(*(t for _, t in sorted(network.state_dict().items())))[:12],
        "schedule": None if schedule is None else identity(schedule.schedule),
    }
    with Folder(config.folder, about) as folder:
        data.broken_log = folder.path / "broken.txt"
        print(chosen(config, planned, data, schedule, config.refreshed and any(batch_norms(network))))
        if config.from_scratch and schedule is not None and (warning := wrong_tool(schedule.schedule)):
            print(printable(warning))
        arms = config.arms(planned.steps)
        for rival in arms[1:]:
            rates = ", ".join(f"{arm.lr:g}" for arm in rival.arms)
            print(f"{rival.arms[0].optimizer}: learning rate {rates} ({rival.arms[0].source}).")
        try:
            train = Training(config, planned, data, network, folder)
            results = [_best([train(arm, i == 0) for arm in rival.arms], train.metric) for i, rival in enumerate(arms)]
            return _report(results, arms, folder, data, train.metric, tested)
        except KeyboardInterrupt:
            raise Stopped(None, exit_code()) from None


def found(data: ImageFolderDataModule, config: OwnImagesConfig) -> Iterator[str]:
    """Describes the images in a few lines."""
    tree, held_out = data.tree, int(data.tree.validation.sum())
    sides = tree.counts()
    counts = {name: sum(both) for name, both in sides.items()}
    small, large = min(counts, key=lambda n: counts[n]), max(counts, key=lambda n: counts[n])
    yield printable(
        f"{tree.root}: {len(counts)} classes of {counts[small]} ({small}) to {counts[large]} ({large}) images; "
        f"{data.train_images} train, {held_out} validate."
    )
    if data.broken:
        yield f"{len(data.broken)} broken file{'s are' if len(data.broken) > 1 else ' is'} left out:"
        shown = list(data.broken.values())[:10]
        yield from (f"  {printable(why)}" for why in shown)
        if len(data.broken) > len(shown):
            yield f"  and {len(data.broken) - len(shown)} more"
    unjudged = [name for name, (_, held) in sides.items() if not held]
    if unjudged:
        some = ", ".join(unjudged[:5]) + (", ..." if len(unjudged) > 5 else "")
        yield printable(f"{len(unjudged)} of {len(counts)} classes have no image to validate on ({some}): no accuracy tells of them.")
    if data.imbalance >= UNLIKE and config.balance == "none" and not data.multilabel:
        times = f"{data.imbalance:.1f} times the training images of the smallest"
        yield f"The largest class has {times}: --balance sampling, or weights, evens that out."
    if data.transform.channels == 3 and config.channels is None and _all_grey(data):
        number = len(looked_at(tree.files))
        yield f"The {number} images that were looked at are grey: --channels 1 makes a network that needs no colour."


def looked_at(files: Sequence[str]) -> Sequence[str]:
    """Some of the files, from all over the tree."""
    return files[:: max(1, math.ceil(len(files) / LOOKED_AT))]


def _all_grey(data: ImageFolderDataModule) -> bool:
    """Whether images from all over the tree have no colour."""
    for file in looked_at(data.tree.files):
        try:
            pixels = np.asarray(open_image(data.tree.root / file))
        except BrokenImage:
            continue
        if (pixels != pixels[..., :1]).any():
            return False
    return True


def chosen(config: OwnImagesConfig, planned: Plan, data: ImageFolderDataModule, schedule: Chosen | None, refreshed: bool) -> str:
    """The settings of the run, and what was chosen where nobody said, in one line."""
    passes = planned.steps * data.batch_size * config.devices / data.train_images
    parts = [
        f"{config.model}, {config.origin}, {data.transform.side} px",
        f"{planned.steps} steps of {data.batch_size * config.devices} images ({passes:.3g} times through them)",
        f"{planned.validations} validation{'s' if planned.validations != 1 else ''}, every {planned.validate_every} steps",
        f"augmentation {config.augmentation}",
        *([] if schedule is None else [f"the schedule {printable(str(schedule))}"]),
        *(["a head start"] if config.head == "start" else []),
        *(["recent BatchNorm statistics"] if refreshed else []),
    ]
    return "; ".join(parts) + "."


def _fingerprint(data: ImageFolderDataModule) -> str:
    """Hashes the files' names and sizes in bytes, classes and sides, not their contents."""
    tree = data.tree
    sizes = [(tree.root / file).stat().st_size for file in tree.files]
    return fingerprint(json.dumps([tree.files, sizes, tree.classes]), torch.from_numpy(tree.labels), torch.from_numpy(tree.validation))[:12]


def _schedule(config: OwnImagesConfig, network: nn.Module) -> Chosen:
    """Finds the schedule. Raises ValueError, and names one that fits, if it does not fit."""
    named = list(network.named_parameters())
    found = resolve(config.schedule, named)
    try:
        found.schedule.slots(len(named), [name for name, _ in named])
    except ValueError as error:
        why = str(error).partition(";")[0]
        raise ValueError(
            f"--learned must fit {config.model} (got {config.learned}: {why}); {GENERALIST} fits any, and auto takes one that fits"
        ) from None
    return found


def _try(network: nn.Module, config: OwnImagesConfig, num_classes: int, batch_size: int) -> None:
    """Raises ValueError if the network does not give logits for images of this size, or cannot be trained on one image at a time."""
    t = config.transform
    mode = network.training
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(1, t.channels, t.side, t.side))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"{config.model} cannot take images of {t.side} px ({first_line(error)}); leave --side out, or give another, or --img-size"
        ) from None
    network.train(mode)
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (1, num_classes):
        raise ValueError(f"{config.model} gives {shape} for one image, and not {num_classes} logits: it is no classifier")
    if batch_size == 1 and any(batch_norms(network)):
        try:
            try_one_image(network, t.channels, t.side)
        except ValueError as error:
            raise ValueError(f"--batch-size must be at least 2: {config.model} has BatchNorm (got 1: {first_line(error)})") from None


def _best(results: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """The best learning rate of a grid, and the number of runs that it took."""
    key = metric.removeprefix("val_")
    return {**max(results, key=lambda r: rank(r[key], r["loss"])), "runs": len(results)}


def as_text(results: Sequence[Mapping[str, Any]]) -> str:
    """Formats the summary for the terminal."""
    second = next(key for key in results[0] if key in ("balanced_accuracy", "mean_precision"))
    rows = [("optimizer", "learning rate", "accuracy", second.replace("_", " "), "loss", "best step", "seconds", "runs")]
    for r in results:
        rate = "learned" if r["lr"] is None else f"{r['lr']:g} ({r['from']})"
        numbers = (f"{r[key]:.3f}" for key in ("accuracy", second, "loss"))
        rows.append((r["optimizer"], rate, *numbers, str(r["best_step"]), f"{r['seconds']:.0f}", str(r["runs"])))
    return "\n".join(table(rows, left=(0, 1), line=True))


def _report(
    results: Sequence[Mapping[str, Any]],
    arms: Sequence[Rival],
    folder: Folder,
    data: ImageFolderDataModule,
    metric: str,
    tested: ImageTree | None,
) -> pd.DataFrame:
    """Prints and writes the results."""
    summary = pd.DataFrame(results)
    folder.write_table(summary, folder.path / "summary.csv")
    named = {row["optimizer"]: next(a for rival in arms for a in rival.arms if a.name == row["optimizer"]) for row in results}
    curves = {name: pd.read_csv(folder.of(arm, i == 0) / "curve.csv") for i, (name, arm) in enumerate(named.items())}
    with folder.writing(folder.path / "curves.png"):
        plot_curves(curves, folder.path / "curves.png", metric)
    print(f"\n{as_text(results)}\n")
    first = next(iter(curves.values()))
    judged = len(pd.read_csv(folder.path / "predictions.csv"))
    print(f"These are of the best of {len(first)} validations, on the {judged} images that chose it.")
    left = [FILE, "best.ckpt", "summary.csv", "curves.png", "per_class.csv", "predictions.csv"]
    left += [name for name in ("confusion.png", "l3rs.png (lambda and mu)") if (folder.path / name.split()[0]).exists()]
    left += [] if tested is None else _test(folder, tested)
    log = folder.path / "broken.txt"
    if log.exists():
        lines = sorted(set(log.read_text(encoding="utf-8").splitlines()))
        write_atomically(log, ("\n".join(lines) + "\n").encode())
        print(f"{len(lines)} images could not be decoded, and were left out of their batches: {log}")
    print(f"{folder.path} has {', '.join(left)}.")
    print(f"To use it: l3rs predict {folder.path} IMAGE...; to judge it: l3rs evaluate {folder.path} FOLDER")
    return summary


def _test(folder: Folder, tree: ImageTree) -> list[str]:
    """Evaluates on the folder `test/`, once: what it says chooses nothing. Gives the names of the files that say it."""
    classifier, network = load(folder.path)
    evaluation = evaluate(classifier, network, tree)
    with folder.writing(folder.path):
        files = evaluation.write(folder.path, "test_", "test")
    print(f"On the {len(evaluation.files)} images of {tree.root}, which chose nothing: {evaluation.in_words()}.")
    for why in evaluation.broken:
        print(printable(f"left out: {why}"))
    return files
