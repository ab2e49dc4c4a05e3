"""Which weights of a run are the best, and when there were none better for too long."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from l3rs.data.transform import Transform
from l3rs.own_images.classifier import Classifier
from l3rs.own_images.folder import Folder
from l3rs.own_images.keeper import Keeper, rank


def test_what_is_not_finite_is_worse_than_any_number() -> None:
    worst_first = [(math.nan, 0.1), (0.0, 9.0), (0.9, math.nan), (0.9, 0.7), (0.9, 0.5)]
    assert all(rank(*worse) < rank(*better) for worse, better in itertools.pairwise(worst_first))


@pytest.mark.parametrize(
    ("seen", "stops_after"),
    [
        ([(0.8, 0.5), (0.8, 0.4), (0.8, 0.3), (0.8, 0.35), (0.8, 0.35)], 5),  # accuracy is equal, and the loss lower: that is better
        ([(0.8, 0.5), (0.7, 0.4), (0.9, 0.6), (0.9, 0.6), (0.9, 0.7)], 5),
        ([(0.8, 0.5), (0.8, 0.5), (0.7, 0.4), (0.9, 0.1)], 3),
        ([(0.8, 0.5), (math.nan, math.nan), (0.8, 0.4)], None),
    ],
)
def test_patience_counts_validations_without_better_weights(
    seen: list[tuple[float, float]], stops_after: int | None, tmp_path: Path
) -> None:
    classifier = Classifier("resnet18", 2, ("a", "b"), Transform(16, 16, 3, "bilinear", (0.5,) * 3, (0.25,) * 3))
    module: Any = None
    with Folder(tmp_path / "run", {}) as folder:
        keeper = Keeper(folder, folder.path, classifier, "val_accuracy", 0, 100, say=False, patience=2)
        for i, (accuracy, loss) in enumerate(seen, 1):
            trainer: Any = SimpleNamespace(
                callback_metrics={"val_accuracy": accuracy, "val_loss": loss}, global_step=i, should_stop=False, is_global_zero=False,
                save_checkpoint=lambda *_, **__: None,
            )  # fmt: skip
            keeper.on_validation_epoch_end(trainer, module)
            assert trainer.should_stop == (i == stops_after)
