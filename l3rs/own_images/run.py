"""The run: looks at the images, trains every optimizer on the same batches, evaluates, and reports."""

from __future__ import annotations

import copy
import json
import logging
import math
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import nn
from torch.nn import functional as F

from l3rs.files import read_json, write_atomically
from l3rs.finetuning.arms import OURS, Arm
from l3rs.lightning.callbacks import L3RSMonitor
from l3rs.lightning.data import ImageFolderDataModule
from l3rs.lightning.module import L3RSModule
from l3rs.networks.pretrained import SHIPPED
from l3rs.own_images.classifier import FILE, Classifier, load
from l3rs.own_images.config import OwnImagesConfig
from l3rs.own_images.folder import Folder
from l3rs.own_images.keeper import Keeper
from l3rs.own_images.pictures import confusion, plot_confusion, plot_curves
from l3rs.processes import exit_code, on_sigterm
from l3rs.schedules.find import GENERALIST, resolve
from l3rs.schedules.learned import identity
from l3rs.schedules.seal import fingerprint
from l3rs.text import first_line, printable, table

VALIDATIONS = 10  # along a run, each with a checkpoint to resume from
FREE = ("data", "out", "workers", "compare")  # may change when a run resumes: images are known by their names, and baselines may be added


class Stopped(Exception):
    """The run was told to stop, and can resume. `step`: the last one, if it was training; `code`: exit code of the process."""

    def __init__(self, step: int | None, code: int) -> None:
        super().__init__(step, code)
        self.step, self.code = step, code


def finetune_own(config: OwnImagesConfig) -> pd.DataFrame:
    """Looks at the images, trains the remaining optimizers, and writes the results; returns the summary, a row an optimizer.

    Raises:
        ValueError: the images, the weights, the schedule, or the folder cannot be used. Nothing was trained then.
    """
    _inside(config)
    data = ImageFolderDataModule(
        config.data, batch_size=config.batch_size, transform=config.transform, augment=config.augment and config.weights not in SHIPPED,
        seed=config.seed, workers=config.workers, batches_per_epoch=config.steps,
    )  # fmt: skip
    for line in found(data):
        print(line, flush=True)
    network = config.network(data.num_classes)
    schedule = _schedule(config, network)
    _try(network, config, data.num_classes)
    about = {k: v for k, v in asdict(config).items() if k not in FREE} | {
        "images": _fingerprint(data),
        "network": fingerprint(*(t for _, t in sorted(network.state_dict().items())))[:12],
        "schedule": schedule,
    }
    with Folder(config.folder, about) as folder:
        data.broken_log = folder.path / "broken.txt"
        print(
            f"{config.model}, {config.origin}, {data.transform.side} px, batches of {data.batch_size}; the schedule {printable(schedule)}."
        )
        for arm in config.arms[1:]:
            print(f"{arm.name}: learning rate {arm.lr:g} ({arm.source}).")
        try:
            results = [_trained(arm, config, data, network, folder) for arm in config.arms]
            return _report(results, config, folder, data)
        except KeyboardInterrupt:
            raise Stopped(None, exit_code()) from None


def _inside(config: OwnImagesConfig) -> None:
    """Raises ValueError if the results would be among the images."""
    out, images = config.folder.resolve(), Path(config.data).resolve()
    if out == images or images in out.parents:
        raise ValueError(f"--out must be outside of the images' folder {config.data} (got {config.folder}); give another folder")


def found(data: ImageFolderDataModule) -> Iterator[str]:
    """Describes the images in a few lines."""
    tree, held_out = data.tree, int(data.tree.validation.sum())
    counts = {name: sum(sides) for name, sides in tree.counts().items()}
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


def _fingerprint(data: ImageFolderDataModule) -> str:
    """Hashes the files' names, classes and sides, not their contents."""
    tree = data.tree
    return fingerprint(json.dumps([tree.files, tree.classes]), torch.from_numpy(tree.labels), torch.from_numpy(tree.validation))[:12]


def _schedule(config: OwnImagesConfig, network: nn.Module) -> str:
    """Finds the schedule, and returns its name and digest. Raises ValueError, and names one that fits, if it does not fit."""
    names = [name for name, _ in network.named_parameters()]
    learned = resolve(config.learned, names)
    try:
        learned.slots(len(names), names)
    except ValueError as error:
        why = str(error).partition(";")[0]
        raise ValueError(
            f"--learned must fit {config.model} (got {config.learned}: {why}); {GENERALIST} fits any, and auto takes one that fits"
        ) from None
    return identity(learned)


def _try(network: nn.Module, config: OwnImagesConfig, num_classes: int) -> None:
    """Raises ValueError if the network does not give logits for images of this size."""
    t = config.transform
    mode = network.training
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(1, t.channels, t.side, t.side))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"{config.model} cannot take images of {t.side} px ({first_line(error)}); leave --side out, or give another"
        ) from None
    network.train(mode)
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (1, num_classes):
        raise ValueError(f"{config.model} gives {shape} for one image, and not {num_classes} logits: it is no classifier")


def _trained(arm: Arm, config: OwnImagesConfig, data: ImageFolderDataModule, start: nn.Module, folder: Folder) -> dict[str, Any]:
    """Trains an arm, or resumes it, and evaluates it; returns its row of the summary."""
    path = folder.of(arm)
    done = path / "result.json"
    if done.exists():
        print(f"{arm.name} is trained already, in {path}.")
        return read_json(done)
    path.mkdir(exist_ok=True)
    print(f"\nTraining with {arm.name}.", flush=True)
    training = {
        "optimizer": arm.name, "lr": arm.lr, "steps": config.steps, "batch_size": data.batch_size, "seed": config.seed,
        "origin": config.origin, "learned": read_json(folder.path / "config.json")["schedule"] if arm.lr is None else None,
        "train_images": data.train_images,
    }  # fmt: skip
    classifier = Classifier(config.model, config.source().stage_width, data.classes, data.transform, training)
    show = sys.stdout.isatty()
    keeper = Keeper(folder, path, classifier, config.seed, config.steps, say=not show)
    module = L3RSModule(copy.deepcopy(start), data.num_classes, learned=config.learned, optimizer=None if arm.lr is None else arm.make)
    monitor, last = L3RSMonitor(), path / "last.ckpt"
    if last.exists():
        _readable(last)
    (path / "l3rs.png").unlink(missing_ok=True)  # it may be half of one
    with _quiet():
        trainer = pl.Trainer(
            max_steps=config.steps,
            val_check_interval=math.ceil(config.steps / VALIDATIONS),
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            accelerator="auto",
            devices=1,
            precision=config.precision,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=show,
            callbacks=[monitor, keeper] if arm.lr is None else [keeper],
            default_root_dir=path,
        )
        try:
            with on_sigterm(signal.SIG_DFL):  # lets Lightning set its own handler, which ends the run between two steps
                trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
        except SIGTERMException:
            raise Stopped(trainer.global_step, 143) from None
        except SystemExit:  # Lightning's answer to Ctrl-C
            raise Stopped(trainer.global_step, 130) from None
        confused, loss = evaluate(path, data, trainer.strategy.root_device)
    right = int(np.diag(confused.to_numpy()).sum())
    total = int(confused.to_numpy().sum())
    folder.write_table(confused, path / "confusion.csv", index=True)
    with folder.writing(path):
        plot_confusion(confused, path / "confusion.png", f"{right} of {total} validation images right")
        if arm.lr is None and not (path / "l3rs.png").exists():  # the run was stopped right after its last step
            monitor.draw(path)
    result = {
        "optimizer": arm.name,
        "lr": arm.lr,
        "from": arm.source,
        "accuracy": right / total,
        "loss": loss,
        "best_step": int(keeper.best["step"]),
        "seconds": round(keeper.seconds, 1),
    }
    with folder.writing(done):
        write_atomically(done, (json.dumps(result, indent=1) + "\n").encode())
    last.unlink(missing_ok=True)
    return result


def _readable(last: Path) -> None:
    """Raises ValueError if a checkpoint cannot be read. It unpickles nothing but tensors and plain values."""
    try:
        torch.load(last, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # torch's unpickler stumbles over garbage in many ways
        raise ValueError(f"{last} cannot be read ({first_line(error)}); remove it to train that optimizer from the start") from None


def evaluate(path: Path, data: ImageFolderDataModule, device: torch.device) -> tuple[pd.DataFrame, float]:
    """Measures the confusion matrix and cross entropy of a saved classifier on the validation images, in full precision."""
    classifier, network = load(path)
    network.to(device)
    labels, predicted, losses = [], [], 0.0
    with torch.inference_mode():
        for inputs, targets in data.val_dataloader():
            logits = network(inputs.to(device)).float().cpu()
            losses += F.cross_entropy(logits, targets, reduction="sum").item()
            labels.append(targets.numpy())
            predicted.append(logits.argmax(dim=1).numpy())
    confused = confusion(np.concatenate(labels), np.concatenate(predicted), classifier.classes)
    return confused, losses / sum(map(len, labels))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides Lightning's remarks on hardware and loaders."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (".*does not have many workers.*", ".*ckpt_path.*", ".*treespec.*", ".*LeafSpec.*", ".*default_root_dir.*"):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        log.setLevel(level)


HEADER = ("optimizer", "learning rate", "accuracy", "loss", "best step", "seconds")


def as_text(results: Sequence[Mapping[str, Any]]) -> str:
    """Formats the summary for the terminal."""
    rows = [HEADER]
    for r in results:
        rate = "learned" if r["lr"] is None else f"{r['lr']:g} ({r['from']})"
        rows.append((r["optimizer"], rate, f"{r['accuracy']:.3f}", f"{r['loss']:.3f}", str(r["best_step"]), f"{r['seconds']:.0f}"))
    return "\n".join(table(rows, left=(0, 1), line=True))


def _report(results: Sequence[Mapping[str, Any]], config: OwnImagesConfig, folder: Folder, data: ImageFolderDataModule) -> pd.DataFrame:
    """Prints and writes the results."""
    summary = pd.DataFrame(results)
    folder.write_table(summary, folder.path / "summary.csv")
    curves = {arm.name: pd.read_csv(folder.of(arm) / "curve.csv") for arm in config.arms}
    with folder.writing(folder.path / "curves.png"):
        plot_curves(curves, folder.path / "curves.png")
    print(f"\n{as_text(results)}\n")
    print(f"Accuracy is the best of {len(curves[OURS])} validations, on the {int(data.tree.validation.sum())} images that chose it.")
    log = folder.path / "broken.txt"
    if log.exists():
        lines = sorted(set(log.read_text(encoding="utf-8").splitlines()))
        write_atomically(log, ("\n".join(lines) + "\n").encode())
        print(f"{len(lines)} images could not be decoded, and were left out of their batches: {log}")
    print(f"{folder.path} has {FILE}, summary.csv, curves.png, confusion.png, confusion.csv and l3rs.png (lambda and mu).")
    print(f"To use it: l3rs predict {folder.path} IMAGE...")
    return summary
