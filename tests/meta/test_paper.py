"""The paper's own meta-training configs, for one generation, on a small tree of real JPEG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from l3rs import learners
from l3rs.cli import main
from l3rs.controller.initial import initial_theta
from l3rs.data.splits import ClassSplit
from l3rs.learned import VeLO
from l3rs.networks.create import create
from l3rs.schedules.schedule import LearnedSchedule

ROOT = Path(__file__).parent.parent.parent


def jpeg(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)).save(path)


@pytest.mark.parametrize("which", ["l3rs", pytest.param("velo", marks=pytest.mark.slow)])
def test_one_generation(which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Full ResNet-34 at 224 px, in bfloat16, on all meta-train and meta-validation classes; but two candidates, one step, few images."""
    split = ClassSplit.find("imagenet25-0")
    for n, c in enumerate([*split.classes["meta-train"], *split.classes["meta-validation"]]):
        jpeg(tmp_path / "imagenet" / "train" / c / f"{c}_1.JPEG", n)
        jpeg(tmp_path / "imagenet" / "val" / c / f"ILSVRC2012_val_{n:08d}.JPEG", 1000 + n)
    torch.manual_seed(0)
    save_file({k: v.contiguous() for k, v in create("resnet34", None, 3, 500).state_dict().items()}, tmp_path / "backbone.safetensors")
    config = ROOT / "configs" / "meta_train" / f"imagenet25_{which}.yaml"
    here = {"data": "imagenet", "weights": "backbone.safetensors", "cache": "cache", "out": "run"}
    own = " ".join(f"--{option} {tmp_path / name}" for option, name in here.items())
    small = (
        "--generations 1 --steps [1,1] --meta-batch 1 --validation-steps [1] --validation-tasks 1 --final-tasks 1 --finalists 1 "
        "--nes.population 2 --task.batch-size 2 --task.evaluation-size 4 --gpus-per-actor 0 --workers 1"
    )
    main(["meta-train", "--config", str(config), *own.split(), *small.split()])
    name = "imagenet25-0-resnet34" if which == "l3rs" else "imagenet25-0-velo"
    assert f"{name}.safetensors: generation" in capsys.readouterr().out
    file = tmp_path / "run" / f"{name}.safetensors"
    learned = learners.load(file)
    assert len(learned.theta) == (
        len(initial_theta(learned.config, learned.layers, 0)) if isinstance(learned, LearnedSchedule) else VeLO.SIZE
    )
    assert learned.training["config"]["precision"] == "bfloat16"
    curve = pd.read_csv(tmp_path / "run" / "curve.csv")  # the paper's Figure 6: fitness and meta-validation accuracy
    assert curve.generation.to_list() == [0, 1]
    assert curve.mean_loss.notna().to_list() == [False, True]
    assert curve.validation_accuracy.notna().all()
