"""Pretrain a network on the pretraining classes of a split, with pytorch-lightning.

    python pretrain/backbone.py --config configs/pretrain/icons.yaml

writes to `--out` the weights (half precision), a log of the validations (CSV; `tensorboard --logdir` reads the folder too), and a record
(JSON): config, accuracy, SHA-256 of the weights, duration. A run that was stopped goes on from its last validation when the same
command is given again. Any model of timm, any class split; `--devices 2` trains on two processes or GPUs, `--precision bf16-mixed` in mixed
precision.
"""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (first: it mends `import torchvision`, which Lightning does, beside a CPU-only torch)

import hashlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from l3rs.data import ImageSet
from l3rs.data.loader import Loader
from l3rs.files import append_rows, whole_rows, write_atomically
from l3rs.finetuning.workload import Workload, flat, from_flat
from l3rs.networks.create import create
from l3rs.schedules.seal import fingerprint

LOG = ("step", "train_loss", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class PretrainConfig:
    """How the backbone is pretrained; each field is a choice of ours.

    Attributes:
        workload: the network, from scratch, and the images; their fields stand beside the others on the command line and in YAML.
        seed: of the first weights, the order of the images, and their augmentation.
        steps: of training.
        batch_size: images a step, on all devices together.
        lr: the peak of a one-cycle schedule.
        weight_decay: of weights of two or more dimensions.
        label_smoothing: of the cross entropy.
        shift: pixels by which images that have no margin to be cut out of are shifted at random.
        mirror: whether these are mirrored at random.
        ema: decay of an exponential moving average of the weights, which is what is validated and kept; 0 is none.
        validate_every: steps between validations; what is lost at most when a run is stopped.
        precision: Lightning's, such as 32-true, bf16-mixed or 16-mixed.
        devices: processes or GPUs.
        accelerator: Lightning's, such as cpu or cuda.
        loaders: processes that make batches beside each device's own.
        name: what the files are called, without their suffixes; None is the model, its width and the split.
    """

    workload: Workload = field(default_factory=lambda: Workload(from_scratch=True))
    seed: int = 0
    steps: int = 2500
    batch_size: int = 64
    lr: float = 4e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    shift: int = 3
    mirror: bool = False
    ema: float = 0.0
    validate_every: int = 250
    precision: str = "32-true"
    devices: int = 1
    accelerator: str = "auto"
    loaders: int = 0
    name: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 (got {getattr(self, name)})")
        if self.batch_size % self.devices:
            raise ValueError(f"batch_size is {self.batch_size}, which {self.devices} devices cannot share evenly")
        if self.steps > self.validate_every and self.steps % self.validate_every:
            raise ValueError(f"steps is {self.steps}, and validations come every {self.validate_every}: that does not come out even")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be at least 0 and below 1 (got {self.ema})")

    @classmethod
    def of(cls, **values: Any) -> PretrainConfig:
        """From flat values, as from a command line or a YAML file."""
        return from_flat(cls, **values, from_scratch=True)

    @property
    def stem(self) -> str:
        """What the files are called, without their suffixes."""
        if self.name is not None:
            return self.name
        w = self.workload
        width = "" if w.width is None else f"-w{w.width}"
        return f"{w.model}{width}-{w.class_split.name}"


class Batches(torch.utils.data.IterableDataset):
    """The training batches from `start` on, as (inputs, labels): a function of the seed and of the step alone.

    Every process draws all batches, which are numbers yet, and makes inputs of its own share only; so a run that goes on, or is spread
    over more loaders, sees the same batches.
    """

    def __init__(self, images: ImageSet, config: PretrainConfig, start: int, rank: int) -> None:
        self.images, self.config, self.start, self.rank = images, config, start, rank
        self.index = torch.nonzero((images.labels >= 0) & ~images.validation).flatten()
        if len(self.index) < config.batch_size:
            raise ValueError(f"batch_size is {config.batch_size}, and there are {len(self.index)} images to pretrain on")

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        c, worker = self.config, torch.utils.data.get_worker_info()
        number, of = (worker.id, worker.num_workers) if worker else (0, 1)
        mine = slice(self.rank, None, c.devices)
        for step, (rows, crops) in enumerate(self.draws()):
            if step >= self.start and (step - self.start) % of == number:
                yield self.inputs(rows[mine], crops[mine]), self.images.labels[rows[mine]]

    def draws(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each step the images, (B,), and where each is cut out and whether it is mirrored, (B, 3)."""
        c, generator = self.config, torch.Generator().manual_seed(self.config.seed)
        (down, right), mirror = (self.images.margin, self.images.mirror) if self.images.augmented else ((2 * c.shift,) * 2, c.mirror)
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(c.steps):
            if len(order) < c.batch_size:
                order = torch.randperm(len(self.index), generator=generator)
            rows, order = order[: c.batch_size], order[c.batch_size :]
            corners = torch.randint(0, max(down, right) + 1, (c.batch_size, 2), generator=generator)
            flips = torch.rand(c.batch_size, 1, generator=generator) < 0.5 if mirror else torch.zeros(c.batch_size, 1, dtype=torch.bool)
            yield self.index[rows], torch.cat([corners, flips.long()], dim=1)

    def inputs(self, rows: Tensor, crops: Tensor) -> Tensor:
        """The images as the network sees them; those that have no margin are given one of the ground's colour."""
        if self.images.augmented:
            return self.images.inputs(rows, crops)
        x, s = self.images.inputs(rows), self.config.shift
        n, channels, height, width = x.shape
        paper = 0.0 if channels == 1 else 1.0  # grey sets are bright ink on a dark ground; colours stand on white
        ground = torch.tensor([(paper - mean) / std for mean, std in zip(self.images.mean, self.images.std, strict=True)])
        padded = ground.view(1, channels, 1, 1).repeat(n, 1, height + 2 * s, width + 2 * s)
        padded[:, :, s : s + height, s : s + width] = x
        cut = torch.stack([p[:, i : i + height, j : j + width] for p, (i, j, _) in zip(padded, crops.tolist(), strict=True)])
        return torch.where(crops[:, 2].bool().view(-1, 1, 1, 1), cut.flip(-1), cut)


class HeldOut(torch.utils.data.Dataset):
    """The validation images, a batch an item."""

    def __init__(self, images: ImageSet, batch_size: int) -> None:
        self.images = images
        self.parts = torch.nonzero((images.labels >= 0) & images.validation).flatten().split(batch_size)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.images.inputs(self.parts[i]), self.images.labels[self.parts[i]]


class Data(pl.LightningDataModule):
    """Batches from where the trainer is; the validation images in batches of 512."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config

    def setup(self, stage: str) -> None:
        self.images = pretraining_images(self.config)

    def train_dataloader(self):
        batches = Batches(self.images, self.config, self.trainer.global_step, self.trainer.global_rank)
        return Loader(batches, batch_size=None, num_workers=self.config.loaders)

    def val_dataloader(self):
        return Loader(HeldOut(self.images, 512), batch_size=None, num_workers=self.config.loaders)


class Backbone(pl.LightningModule):
    """A classifier trained by AdamW with a one-cycle schedule; logs `train_loss`, `val_loss`, `val_accuracy`."""

    def __init__(self, network: nn.Module, config: PretrainConfig, log: Path) -> None:
        super().__init__()
        self.network, self.config, self.log_file = network, config, log
        self.drawn: dict[str, Tensor] = {}  # states of torch's generators to go on from, by the kind of device

    def on_save_checkpoint(self, checkpoint):
        """Adds what DropPath and the like draw from; all processes have drawn alike."""
        gpu = {"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}
        checkpoint["generators"] = {"cpu": torch.get_rng_state(), **gpu}

    def on_load_checkpoint(self, checkpoint):
        """Takes up the draws, and of the log the rows up to the checkpoint: the others come again."""
        self.drawn = checkpoint.get("generators", {})  # older ones have none
        if self.trainer.is_global_zero and self.log_file.exists():
            head, *rows = whole_rows(self.log_file).decode().splitlines(keepends=True) or [""]
            kept = [row for row in rows if int(row.partition(",")[0]) <= checkpoint["global_step"]]
            write_atomically(self.log_file, "".join([head, *kept]).encode())

    def on_train_start(self):
        """Draws go on where they were; only now, since a run that goes on begins with one more loader, which draws too."""
        if "cpu" in self.drawn:
            torch.set_rng_state(self.drawn["cpu"])
        if "cuda" in self.drawn and self.device.type == "cuda":
            torch.cuda.set_rng_state(self.drawn["cuda"], self.device)

    def training_step(self, batch, _):
        inputs, labels = batch
        loss = F.cross_entropy(self.network(inputs), labels, label_smoothing=self.config.label_smoothing)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, _):
        inputs, labels = batch
        logits = self.network(inputs)
        for name, value in (("val_loss", F.cross_entropy(logits, labels)), ("val_accuracy", (logits.argmax(1) == labels).float().mean())):
            self.log(name, value, on_epoch=True, prog_bar=True, batch_size=len(labels), sync_dist=True)

    def on_validation_epoch_end(self):
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            seen = self.trainer.callback_metrics
            append_rows(self.log_file, [{"step": self.global_step, **{n: float(seen[n]) for n in LOG[1:] if n in seen}}], LOG)

    def configure_optimizers(self):
        c = self.config
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim <= 1]  # biases and normalization are not decayed
        groups = [{"params": matrices, "weight_decay": c.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=c.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=c.lr, total_steps=c.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def pretraining_images(config: PretrainConfig) -> ImageSet:
    """The images of the pretraining classes, labelled by these classes' places in the split; all others by -1."""
    workload = config.workload
    images, classes = workload.images("pretrain"), workload.class_split.classes["pretrain"]
    number = {c: i for i, c in enumerate(classes)}
    place = torch.tensor([*(number.get(c, -1) for c in images.classes), -1])  # the last for images of no class, -1
    return replace(images, labels=place[images.labels], classes=classes)


def accuracy(network: nn.Module, images: ImageSet) -> float:
    """Share of the validation images that `network` classifies right, in evaluation mode and full precision."""
    network.eval()
    parts = HeldOut(images, 512)
    with torch.no_grad():
        right = sum(int((network(inputs).argmax(1) == labels).sum()) for inputs, labels in (parts[i] for i in range(len(parts))))
    return right / sum(map(len, parts.parts))


def contents(config: PretrainConfig) -> str:
    """A fingerprint of the images."""
    return fingerprint(json.dumps(config.workload.contents(("pretrain",)), sort_keys=True))[:12]


def refuse_another(file: Path, before: Mapping[str, object], config: PretrainConfig) -> None:
    """Raises ValueError if `file` is of a run with another config or other images; older records do not know their images."""
    now = {**flat(config), "contents": contents(config)}
    free = ("data", "cache", "loaders")
    different = [k for k, v in now.items() if k not in free and before.get(k, v if k == "contents" else None) != v]
    if different:
        raise ValueError(f"{file} is of a run with another config: {', '.join(different)} differ; remove it, or choose another --out")


def finished(folder: Path, config: PretrainConfig) -> dict[str, object] | None:
    """The record, where the folder has the weights of a run that is over. Raises ValueError if it is of another config."""
    record, weights = folder / f"{config.stem}.json", folder / f"{config.stem}.safetensors"
    if not (record.exists() and weights.exists()):
        return None
    about: dict[str, Any] = json.loads(record.read_text())
    images = {"contents": about["contents"]} if "contents" in about else {}
    refuse_another(weights, about["config"] | images, config)
    return about


def resumable(folder: Path, config: PretrainConfig) -> Path | None:
    """The checkpoint to go on from, if the folder has one. Raises ValueError if it is of another config."""
    about, last = folder / f"{config.stem}.config.json", folder / f"{config.stem}.ckpt"
    if last.exists() and about.exists():
        refuse_another(last, json.loads(about.read_text()), config)
        return last
    about.write_text(json.dumps({**flat(config), "contents": contents(config)}, indent=1) + "\n")
    (folder / f"{config.stem}.csv").unlink(missing_ok=True)
    return None


def pretrain(config: PretrainConfig, out: str) -> dict[str, object]:
    """Pretrains the backbone, writes it to `out`, and gives the record; of a run that is over, its record alone."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*num_workers.*", ".*ckpt_path.*", ".*Checkpoint directory.*"):
        warnings.filterwarnings("ignore", message)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if about := finished(folder, config):
        print(f"{config.stem} is done already", file=sys.stderr)
        return about
    last, stem = resumable(folder, config), folder / config.stem
    workload = config.workload
    workload.prepare(("pretrain",))
    pl.seed_everything(config.seed, verbose=False)
    classes = workload.class_split.classes["pretrain"]
    network = create(workload.model, workload.width, workload.in_chans, len(classes), workload.model_args)
    module = Backbone(network, config, Path(f"{stem}.csv"))
    # An epoch is from one validation to the next, so that a run always goes on from between two epochs.
    callbacks: list[pl.Callback] = [
        ModelCheckpoint(folder, config.stem, monitor=None, enable_version_counter=False, save_on_train_epoch_end=False)
    ]
    averages = [EMAWeightAveraging(decay=config.ema)] if config.ema else []
    started = time.perf_counter()
    trainer = pl.Trainer(
        max_steps=config.steps,
        limit_train_batches=min(config.validate_every, config.steps),
        reload_dataloaders_every_n_epochs=1,
        accelerator=config.accelerator,
        devices=config.devices,
        precision=config.precision,  # type: ignore[arg-type]
        logger=TensorBoardLogger(folder, name="tensorboard", version=config.stem),
        callbacks=[*callbacks, *averages],
        log_every_n_steps=min(50, config.validate_every),
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=Data(config), ckpt_path=last, weights_only=True)
    for average in averages:  # which Lightning leaves out where a run that is resumed has no step to take
        average.on_train_end(trainer, module)
    seconds = time.perf_counter() - started
    if not trainer.is_global_zero:
        return {}
    return keep(network.cpu(), config, stem, seconds)


def keep(network: nn.Module, config: PretrainConfig, stem: Path, seconds: float) -> dict[str, object]:
    """Writes the weights in half precision and the record, with the accuracy of both precisions; gives the record."""
    images = pretraining_images(config)
    full = accuracy(network, images)
    halves = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    network.load_state_dict(halves)
    save_file(halves, f"{stem}.safetensors")
    sides = images.validation[images.labels >= 0]
    about: dict[str, object] = {
        "config": flat(config),
        "contents": contents(config),
        "train_images": int((~sides).sum()),
        "validation_images": int(sides.sum()),
        "classes": len(images.classes),
        "validation_accuracy": full,
        "validation_accuracy_half": accuracy(network, images),
        "sha256": hashlib.sha256(Path(f"{stem}.safetensors").read_bytes()).hexdigest(),
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
    }
    Path(f"{stem}.json").write_text(json.dumps(about, indent=1) + "\n")
    for leftover in (".ckpt", ".config.json"):  # the run is over
        Path(f"{stem}{leftover}").unlink(missing_ok=True)
    return about


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="config", help="a YAML file with the settings below")
    parser.add_argument("--out", type=str, default="runs/pretrain", help="folder for the weights, the log and the record")
    parser.add_class_arguments(Workload, as_group=False, skip={"weights", "from_scratch"})
    parser.add_class_arguments(PretrainConfig, as_group=False, skip={"workload"})
    args = vars(parser.parse_args())
    out, _ = args.pop("out"), args.pop("config")
    try:
        about = pretrain(PretrainConfig.of(**args), out)
    except ValueError as error:
        parser.error(str(error))
    if about:
        print(json.dumps(about))


if __name__ == "__main__":
    main()
