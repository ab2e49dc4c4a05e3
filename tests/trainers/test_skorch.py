"""skorch, whose step is a closure that returns the loss: nothing has to be handed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import small_network
from plain import SIGNALS, STEPS, data, learned, plain_loop, same
from torch import nn

from l3rs import L3RS

skorch = pytest.importorskip("skorch")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = small_network()

    def forward(self, inputs: Any) -> Any:
        return self.layers(inputs)


def classifier(sees: str) -> Any:
    made = skorch.NeuralNetClassifier(
        Small,
        criterion=nn.CrossEntropyLoss,
        optimizer=L3RS,
        optimizer__total_steps=STEPS,
        optimizer__learned=learned(small_network(), sees),
        optimizer__match="position",
        lr=1.0,
        max_epochs=1,
        batch_size=16,
        train_split=None,
        verbose=0,
    )
    return made.initialize()


@pytest.mark.parametrize("sees", SIGNALS)
def test_twenty_steps_are_those_of_the_plain_loop(sees: str) -> None:
    inputs, labels = data()
    assert same(classifier(sees).partial_fit(inputs.numpy(), labels.numpy()).module_.layers, plain_loop(sees))


def test_a_checkpoint_resumes(tmp_path: Path) -> None:
    inputs, labels = data()
    files = {"f_params": tmp_path / "module.pt", "f_optimizer": tmp_path / "optimizer.pt"}
    first, again = classifier("sees the loss"), classifier("sees the loss")
    first.partial_fit(inputs[: 8 * 16].numpy(), labels[: 8 * 16].numpy()).save_params(**files)
    again.load_params(**files)
    assert same(again.partial_fit(inputs[8 * 16 :].numpy(), labels[8 * 16 :].numpy()).module_.layers, plain_loop())
