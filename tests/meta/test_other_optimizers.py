"""Other learned optimizers than L3RS are meta-trained by the same loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from small_runs import bits, quick, same

from l3rs.learned import theta as meta
from l3rs.learned.celo2 import SHAPES
from l3rs.learned.weights import LearnedWeights
from l3rs.meta.config import MetaTrainConfig
from l3rs.meta.train import meta_train
from l3rs.schedules.seal import CheckpointError


@pytest.mark.parametrize(("optimizer", "changes"), [pytest.param("celo2-base", {}, marks=pytest.mark.slow), ("celo", {"lr": 0.5})])
def test_they_are_meta_trained_like_l3rs_and_resume_to_the_same_bits(optimizer: str, changes: dict[str, object], tmp_path: Path) -> None:
    config = quick(2, optimizer=optimizer, name="other", **changes)
    chosen = meta_train(config, tmp_path / "straight", progress=False)
    assert torch.equal(LearnedWeights.read(tmp_path / "straight" / "other.safetensors").theta, chosen.theta)
    start, end = (LearnedWeights.read(tmp_path / "straight" / f"theta-0000{generation}.safetensors").theta for generation in (0, 2))
    assert not torch.equal(start, end)
    meta_train(replace(config, generations=1), tmp_path / "halves", progress=False)
    meta_train(config, tmp_path / "halves", progress=False)
    assert same(bits(tmp_path / "straight", 2), bits(tmp_path / "halves", 2))
    assert pd.read_csv(tmp_path / "straight" / "curve.csv").mean_loss.notna().sum() == 2


def test_meta_training_starts_from_published_files(tmp_path: Path) -> None:
    theta = meta.random(SHAPES, 5)
    save_file({name: t.contiguous() for name, t in meta.unflatten(theta, SHAPES).items()}, tmp_path / "published.safetensors")
    config = quick(1, optimizer="celo2", lr=0.03, start=(str(tmp_path / "published.safetensors"),))
    meta_train(config, tmp_path / "run", progress=False)
    assert torch.equal(LearnedWeights.read(tmp_path / "run" / "theta-00000.safetensors").theta, theta)
    with pytest.raises(CheckpointError, match=r"nowhere\.state is not a file"):
        meta_train(replace(config, start=("nowhere.state",)), tmp_path / "other", progress=False)


def test_settings_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer must be one of l3rs, velo, celo, celo2, celo2-base.*\(got 'adam'\)"):
        MetaTrainConfig(optimizer="adam")
    with pytest.raises(ValueError, match=r"lr is a setting of other optimizers: l3rs has no learning rate \(got 0\.1\)"):
        MetaTrainConfig(lr=0.1)
    with pytest.raises(ValueError, match=r"lr must be positive and finite \(got -1\.0\)"):
        MetaTrainConfig(optimizer="celo", lr=-1.0)
