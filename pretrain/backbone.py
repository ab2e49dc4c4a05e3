"""Pretrain a ResNet on the pretraining classes of Icons, with pytorch-lightning.

    python pretrain/backbone.py --config configs/pretrain-icons.yaml

writes the weights (half precision), `pretrain-log.csv` and `pretrain.json` (config, final accuracy, duration) to `--out`.
"""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (first: it mends `import torchvision`, which Lightning does, beside a CPU-only torch)

import json
import logging
import time
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from l3rs.data import ImageSet, load_icons
from l3rs.data.icons import icons_split
from l3rs.networks import resnet


@dataclass(frozen=True)
class PretrainConfig:
    """How the backbone is pretrained; each field is a choice of ours."""

    seed: int = 0
    depth: int = 34
    width: int = 16
    steps: int = 2500
    batch_size: int = 64
    lr: float = 4e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    shift: int = 3
    mirror: bool = False


class Batches(torch.utils.data.IterableDataset):
    """`steps` batches of (inputs, labels), a function of the seed alone; images are shifted (and mirrored) at random."""

    def __init__(self, images: ImageSet, index: Tensor, labels: Tensor, config: PretrainConfig) -> None:
        self.images, self.index, self.labels, self.config = images, index, labels, config

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.config.seed)
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(self.config.steps):
            if len(order) < self.config.batch_size:
                order = torch.randperm(len(self.index), generator=generator)
            rows, order = order[: self.config.batch_size], order[self.config.batch_size :]
            yield self.augment(self.images.inputs(self.index[rows]), generator), self.labels[rows]

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        s, side = self.config.shift, x.shape[-1]
        padded = F.pad(x, (s, s, s, s), value=-self.images.mean / self.images.std)  # the value of an empty pixel
        corners = torch.randint(0, 2 * s + 1, (len(x), 2), generator=generator).tolist()
        x = torch.stack([p[:, i : i + side, j : j + side] for p, (i, j) in zip(padded, corners, strict=True)])
        if self.config.mirror:
            flip = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
            x = torch.where(flip, x.flip(-1), x)
        return x


class Backbone(pl.LightningModule):
    """A classifier trained by AdamW with a one-cycle schedule; logs `train_loss`, `val_loss`, `val_accuracy`."""

    def __init__(self, network: nn.Module, config: PretrainConfig) -> None:
        super().__init__()
        self.network, self.config, self.rows = network, config, []

    def training_step(self, batch, _):
        inputs, labels = batch
        loss = F.cross_entropy(self.network(inputs), labels, label_smoothing=self.config.label_smoothing)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, _):
        inputs, labels = batch
        logits = self.network(inputs)
        self.log("val_loss", F.cross_entropy(logits, labels), on_epoch=True, batch_size=len(labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean(), on_epoch=True, prog_bar=True, batch_size=len(labels))

    def on_validation_epoch_end(self):
        seen = self.trainer.callback_metrics
        names = ("train_loss", "val_loss", "val_accuracy")
        self.rows.append({"step": self.global_step, **{n: float(seen[n]) for n in names if n in seen}})

    def configure_optimizers(self):
        c = self.config
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim <= 1]  # biases and normalization are not decayed
        groups = [{"params": matrices, "weight_decay": c.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=c.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=c.lr, total_steps=c.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def accuracy(network: nn.Module, images: ImageSet, index: Tensor, labels: Tensor) -> float:
    """Share of `index` that `network` classifies right, in evaluation mode."""
    network.eval()
    with torch.no_grad():
        right = sum(int((network(images.inputs(i)).argmax(1) == y).sum()) for i, y in zip(index.split(512), labels.split(512), strict=True))
    return right / len(index)


def pretrain(config: PretrainConfig, out: str) -> None:
    """Pretrains the backbone and writes it to `out`."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    pl.seed_everything(config.seed, verbose=False)
    images, split = load_icons(), icons_split()
    number = torch.full((len(images.classes),), -1)
    for i, name in enumerate(split.classes["pretrain"]):
        number[images.classes.index(name)] = i
    labels = number[images.labels]
    train, val = (torch.nonzero((labels >= 0) & (images.validation == side)).flatten() for side in (False, True))

    network = resnet(config.depth, config.width, in_chans=1, num_classes=len(split.classes["pretrain"]))
    module = Backbone(network, config)
    validation = [(images.inputs(i), labels[i]) for i in val.split(512)]
    started = time.perf_counter()
    trainer = pl.Trainer(
        max_steps=config.steps,
        val_check_interval=min(250, config.steps),
        check_val_every_n_epoch=None,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(
        module,
        torch.utils.data.DataLoader(Batches(images, train, labels[train], config), batch_size=None),
        torch.utils.data.DataLoader(validation, batch_size=None),
    )
    seconds = time.perf_counter() - started

    full = accuracy(network, images, val, labels[val])
    halves = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    network.load_state_dict(halves)
    half = accuracy(network, images, val, labels[val])
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"resnet{config.depth}-w{config.width}-icons"
    save_file({k: v.contiguous() for k, v in halves.items()}, f"{stem}.safetensors")
    pd.DataFrame(module.rows).to_csv(f"{stem}.csv", index=False)
    about = {
        "config": asdict(config),
        "train_images": len(train),
        "validation_images": len(val),
        "classes": len(split.classes["pretrain"]),
        "validation_accuracy": full,
        "validation_accuracy_half": half,
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
    }
    Path(f"{stem}.json").write_text(json.dumps(about, indent=1) + "\n")
    print(json.dumps(about))


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="config", help="a YAML file with the settings below")
    parser.add_argument("--out", type=str, default="l3rs/weights", help="folder for the weights, the log and the record")
    parser.add_class_arguments(PretrainConfig, as_group=False)
    args = parser.parse_args()
    pretrain(PretrainConfig(**{f.name: args[f.name] for f in fields(PretrainConfig)}), args.out)


if __name__ == "__main__":
    main()
