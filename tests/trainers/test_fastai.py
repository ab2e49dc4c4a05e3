"""fastai: `OptimWrapper` makes L3RS, and a callback hands over the loss."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import small_network
from plain import SIGNALS, STEPS, batches, learned, plain_loop, same
from torch import nn

from l3rs import L3RS

pytest.importorskip("fastai")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:fastai.*")


def learner(folder: Path, sees: str, steps: range, tell: bool = True) -> Any:
    import fastai.callback.progress  # noqa: F401  (which gives `no_bar`)
    from fastai.callback.core import Callback, CancelFitException
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    class HandOverTheLoss(Callback):  # type: ignore[misc]
        def after_loss(self) -> None:
            self.learn.opt.opt.observe(self.learn.loss_grad)

    class Stop(Callback):  # type: ignore[misc]
        def after_batch(self) -> None:
            if self.training and self.train_iter == len(steps):
                raise CancelFitException

    network = small_network()
    examples = [(x, y) for inputs, labels in batches()[steps.start :] for x, y in zip(inputs, labels, strict=True)]
    data = DataLoaders(DataLoader(examples, bs=16), DataLoader(examples[:32], bs=16))
    make = partial(OptimWrapper, opt=partial(L3RS, total_steps=STEPS, learned=learned(network, sees)))
    callbacks = [Stop(), *([HandOverTheLoss()] if tell else [])]
    return Learner(
        data,
        network,
        nn.CrossEntropyLoss(),
        opt_func=make,
        lr=1.0,
        splitter=lambda model: list(model.named_parameters()),
        cbs=callbacks,
        path=folder,
        model_dir=".",
    )


def fit(learn: Any, epochs: int = 1) -> nn.Module:
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs)
    return learn.model  # type: ignore[no-any-return]


def test_twenty_steps_are_those_of_the_plain_loop(tmp_path: Path) -> None:
    assert same(fit(learner(tmp_path, "sees the loss", range(STEPS))), plain_loop())


@pytest.mark.parametrize("sees", SIGNALS)
def test_a_checkpoint_resumes(sees: str, tmp_path: Path) -> None:
    tell = sees == "sees the loss"
    first = learner(tmp_path, sees, range(8), tell)
    fit(first)
    first.save("stopped", with_opt=True)
    again = learner(tmp_path, sees, range(8, STEPS), tell)
    again.create_opt()
    again.load("stopped", with_opt=True)
    assert same(fit(again), plain_loop(sees))


def test_a_loss_that_was_forgotten_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"or observe\(loss\) before a step\(\) that a trainer calls"):
        fit(learner(tmp_path, "sees the loss", range(STEPS), tell=False))
