"""One optimizer's training, on Lightning's Trainer."""

from __future__ import annotations

import copy
import json
import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from l3rs.files import read_json, write_atomically
from l3rs.finetuning.arms import Arm
from l3rs.lightning.callbacks import BatchNormMode, L3RSMonitor, RecentStatistics
from l3rs.lightning.data import ImageFolderDataModule
from l3rs.lightning.module import L3RSModule
from l3rs.networks.batch_norms import batch_norms
from l3rs.networks.create import head_of
from l3rs.networks.head_start import HEAD_BATCHES, head_start
from l3rs.own_images.classifier import Classifier, load
from l3rs.own_images.config import OwnImagesConfig
from l3rs.own_images.evaluation import evaluate
from l3rs.own_images.folder import Folder
from l3rs.own_images.keeper import LAST, AtAverage, Keeper
from l3rs.own_images.plan import Plan
from l3rs.processes import Handler, on_sigterm, terminate
from l3rs.run_folder import CONFIG
from l3rs.text import first_line

AVERAGED = 0.1  # share of the run that a running average looks back on [choice]
HEAD_SHARE = 0.1  # batches of a head start at most, by steps of the run: forward passes alone, a third of a step each [choice]
LEAST_BATCHES = 10  # or so many [choice]


class Stopped(Exception):
    """The run was told to stop, and can resume. `step`: the last one, if it was training; `code`: exit code of the process."""

    def __init__(self, step: int | None, code: int) -> None:
        super().__init__(step, code)
        self.step, self.code = step, code


class Training:
    """The training of every arm: the same first network, the same batches.

    Args:
        config, plan, data: of the run.
        start: the first network.
        folder: of the run.
    """

    def __init__(self, config: OwnImagesConfig, plan: Plan, data: ImageFolderDataModule, start: nn.Module, folder: Folder) -> None:
        self.config, self.plan, self.data, self.folder = config, plan, data, folder
        self._start, self._started = start, False

    @property
    def metric(self) -> str:
        """The metric of validation that chooses the best weights."""
        if self.data.multilabel:
            return "val_mean_precision"
        return "val_accuracy" if self.config.balance == "none" else "val_balanced_accuracy"

    def start(self) -> nn.Module:
        """A copy of the first network; its head is fitted once, in closed form, if any arm begins."""
        if not self._started and self.config.head == "start":
            try:
                a_pass = max(1, self.data.train_images // self.data.batch_size)  # more views of the same images would judge themselves
                limit = min(HEAD_BATCHES, a_pass, max(LEAST_BATCHES, int(HEAD_SHARE * self.plan.steps)))
                print(f"{head_start(self._start, self.data.batches(range(limit)))}.", flush=True)
            except ValueError as error:
                print(f"head start: none ({first_line(error)}).")
        self._started = True
        return copy.deepcopy(self._start)

    def __call__(self, arm: Arm, main: bool) -> dict[str, Any]:
        """Trains an arm, or resumes it, and evaluates it; returns its row of the summary."""
        path = self.folder.of(arm, main)
        done, last = path / "result.json", path / LAST
        if done.exists():
            print(f"{arm.name} is trained already, in {path}.")
            return read_json(done)
        path.mkdir(exist_ok=True)
        if last.exists():
            _readable(last)
        print(f"\nTraining with {arm.name}.", flush=True)
        start = copy.deepcopy(self._start) if last.exists() else self.start()
        (path / "l3rs.png").unlink(missing_ok=True)  # it may be half of one
        monitor = L3RSMonitor() if arm.lr is None else None
        with _quiet():
            self._fit(arm, self._module(arm, start), monitor, path)
            result = self._judge(arm, path, monitor)
        with self.folder.writing(done):
            write_atomically(done, (json.dumps(result, indent=1) + "\n").encode())
        last.unlink(missing_ok=True)
        return result

    def _module(self, arm: Arm, network: nn.Module) -> L3RSModule:
        config, data = self.config, self.data
        if config.head_only:
            network.requires_grad_(False)
            head_of(network).requires_grad_(True)
        weights = None
        if config.balance == "weights":
            counts = [train for train, _ in data.tree.counts().values()]
            weights = [data.train_images / len(counts) / count for count in counts]
        module = L3RSModule(
            network, data.num_classes, learned=config.schedule, optimizer=None if arm.lr is None else arm.make, classes=data.classes,
            multilabel=data.multilabel, label_smoothing=config.label_smoothing, class_weights=weights,
        )  # fmt: skip
        if config.source().stage_width is None and config.img_size is None:  # then a checkpoint needs no network to be loaded
            module.save_hyperparameters({"model": config.model, "pretrained": False, "in_chans": data.transform.channels})
        return module

    def _fit(self, arm: Arm, module: L3RSModule, monitor: L3RSMonitor | None, path: Path) -> None:
        config, several = self.config, self.config.devices > 1
        trainer = pl.Trainer(
            max_steps=self.plan.steps,
            val_check_interval=self.plan.validate_every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            accelerator="auto",
            devices=config.devices,
            strategy="auto" if not several else "ddp_spawn" if torch.cuda.is_available() else "ddp_fork",
            use_distributed_sampler=False,  # the data module parts training batches itself; each process validates on all images
            precision=config.precision,  # type: ignore[arg-type]
            logger=_loggers(config.logger, path),
            log_every_n_steps=max(1, self.plan.steps // 100),
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=sys.stdout.isatty(),
            callbacks=self._callbacks(arm, module, monitor, path),
            default_root_dir=path,
        )
        # Lightning's own handler, set where there is none, ends the run between two steps; it knows the signals of one process
        handler: Handler = terminate if several else signal.SIG_DFL
        last = path / LAST
        try:
            with on_sigterm(handler):
                trainer.fit(module, datamodule=self.data, ckpt_path=last if last.exists() else None, weights_only=True)
        except SIGTERMException:
            raise Stopped(trainer.global_step, 143) from None
        except SystemExit:  # Lightning's answer to Ctrl-C
            raise Stopped(trainer.global_step, 130) from None

    def _callbacks(self, arm: Arm, module: L3RSModule, monitor: L3RSMonitor | None, path: Path) -> list[pl.Callback]:
        config, data = self.config, self.data
        training = {
            "optimizer": arm.name, "lr": arm.lr, "steps": self.plan.steps, "batch_size": data.batch_size, "seed": config.seed,
            "origin": config.origin, "learned": read_json(self.folder.path / CONFIG)["schedule"] if arm.lr is None else None,
            "train_images": data.train_images,
        }  # fmt: skip
        classifier = Classifier(
            config.model, config.source().stage_width, data.classes, data.transform, training, config.img_size, data.multilabel
        )
        say = not sys.stdout.isatty()
        keeper = Keeper(self.folder, path, classifier, self.metric, config.seed, self.plan.steps, say, config.patience)
        callbacks: list[pl.Callback] = [] if monitor is None else [monitor]
        if arm.optimizer == "schedule-free":
            callbacks += [AtAverage(data, refresh=not config.head_only)]
        elif config.refreshed and any(batch_norms(module)):
            callbacks += [RecentStatistics(network="network")]
        callbacks += [keeper]
        if config.head_only and any(batch_norms(module)):
            callbacks += [BatchNormMode("eval")]
        if config.average:
            decay = 1 - 1 / max(2.0, AVERAGED * self.plan.steps)
            callbacks += [WeightAveraging(use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(decay))]
        return callbacks

    def _judge(self, arm: Arm, path: Path, monitor: L3RSMonitor | None) -> dict[str, Any]:
        """Evaluates the best weights, and writes what they say of each image."""
        classifier, network = load(path)
        evaluation = evaluate(classifier, network, self.data.tree, self.data.tree.validation.nonzero()[0].tolist())
        with self.folder.writing(path):
            evaluation.write(path)
            if monitor is not None and not (path / "l3rs.png").exists() and not monitor.decisions.empty:
                monitor.draw(path)  # the run was stopped right after its last step, or a logger has the other one
        kept = torch.load(path / LAST, map_location="cpu", weights_only=True)["callbacks"]["Keeper"]  # a process may be another
        return {
            "optimizer": arm.name,
            "lr": arm.lr,
            "from": arm.source,
            "accuracy": evaluation.accuracy,
            evaluation.second_name: evaluation.second,
            "loss": evaluation.loss,
            "best_step": int(kept["best"]["step"]),
            "seconds": round(kept["seconds"], 1),
        }


def _loggers(names: tuple[str, ...], path: Path) -> list[Logger]:
    made: list[Logger] = []
    for name in names:
        if name == "tensorboard":
            made.append(TensorBoardLogger(path / "logs", name="tensorboard"))
        elif name == "csv":
            made.append(CSVLogger(path / "logs", name="csv"))
        else:
            made.append(WandbLogger(project="l3rs", name=path.name, save_dir=path / "logs"))
    return made


def _readable(last: Path) -> None:
    """Raises ValueError if a checkpoint cannot be read. It unpickles nothing but tensors and plain values."""
    try:
        torch.load(last, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # torch's unpickler stumbles over garbage in many ways
        raise ValueError(f"{last} cannot be read ({first_line(error)}); remove it to train that optimizer from the start") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides Lightning's remarks on hardware and loaders."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.WARNING)
    messages = (
        "does not have many workers", "ckpt_path", "treespec", "LeafSpec", "default_root_dir", "Trying to infer the `batch_size`",
        "Experiment logs directory", "lr_scheduler.step", "No positive samples",
    )  # fmt: skip
    try:
        with warnings.catch_warnings():
            for message in messages:
                warnings.filterwarnings("ignore", f".*{message}.*")
            yield
    finally:
        log.setLevel(level)
