"""The weights of another learned optimizer that are shipped."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import small_network
from torch import nn

from l3rs import learners
from l3rs.cli import main
from l3rs.evaluation.cells import identity_of
from l3rs.learned import Celo2
from l3rs.learned.weights import KINDS, load
from l3rs.schedules.find import SHIPPED_WEIGHTS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", SHIPPED_WEIGHTS)
def test_they_go_by_their_name(name: str) -> None:
    learned = learners.load(name)
    assert learned.name == name
    assert learned.kind in KINDS
    assert learned.training["config"]["name"] == name
    assert torch.equal(load(name, learned.kind).theta, learned.theta)
    assert identity_of(learned.kind, name).startswith(f"{name} ")


def test_they_are_loaded_as_errors_say() -> None:
    """After `import l3rs` alone."""
    code = "import l3rs; print(l3rs.learners.load('icons-celo2-base').kind)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "celo2-base\n"


def test_another_optimizer_does_not_take_them() -> None:
    with pytest.raises(ValueError, match=r"icons-celo2-base\.safetensors holds weights of celo2-base, and celo was asked for"):
        load("icons-celo2-base", "celo")


def test_the_pages_example_fine_tunes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block of the page, from a network that knows nothing: its loss falls."""
    page = (DOCS / "learned-optimizers.md").read_text()
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "icons-celo2-base" in b]
    torch.manual_seed(0)
    model, total_steps = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 4)), 30
    images, labels = torch.randn(64, 3, 4, 4), torch.randint(0, 4, (64,))
    space = {"Celo2": Celo2, "torch": torch, "model": model, "total_steps": total_steps}
    exec(compile(block, "learned-optimizers.md", "exec"), space)
    optimizer, scheduler, losses = space["optimizer"], space["scheduler"], []
    for _ in range(total_steps):
        loss = nn.functional.cross_entropy(model(images), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    assert losses[-1] < 0.9 * losses[0]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_the_page_and_the_usual_recipe_are_one() -> None:
    """`learners.build`, which meta-training and evaluation use, has the learning rate that the page names."""
    learned = learners.load("icons-celo2-base")
    built = learners.build(learned, small_network().named_parameters(), 25)
    assert built.param_groups[0]["lr"] == pytest.approx(0.03 / 5)


def test_the_command_line_knows_them(capsys: pytest.CaptureFixture[str]) -> None:
    main(["info", "icons-celo2-base"])
    assert "optimizer: celo2-base" in capsys.readouterr().out
    main(["list"])
    assert re.search(r"icons-celo2-base +celo2-base +any network +347 +40 ", capsys.readouterr().out)
