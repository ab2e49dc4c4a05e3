"""The first 20 steps of the shipped schedules on a fixed small network, as they were when their checkpoints were made.

    python tests/optimizer/test_golden.py

writes tests/optimizer/first-steps.json anew. Only a new checkpoint, or a change of the algorithm that is meant, is a reason to.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from l3rs import L3RS
from l3rs.networks.create import draw_head, resnet34
from l3rs.schedules.find import SHIPPED

GOLDEN = Path(__file__).parent / "first-steps.json"
STEPS = 20
SHOWN = ("conv1.weight", "layer1.0.conv1.weight", "layer2.0.bn1.bias", "layer4.2.conv2.weight", "fc.weight", "fc.bias")


def first_steps(name: str) -> list[dict[str, list[float]]]:
    """For each step: the loss before it; and of some layers lambda, the share of Adam, and the norm of the weights after it.

    ResNet-34 at width 4 in float64, drawn from a fixed seed: rounding does not grow in 20 steps, so that any machine gives the same.
    """
    torch.manual_seed(0)
    network = resnet34(width=4, in_chans=1, num_classes=5).double()
    draw_head(network, seed=1)
    optimizer = L3RS(network.named_parameters(), STEPS, name)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(STEPS, 16, 1, 32, 32, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (STEPS, 16), generator=generator)
    rows = []
    for x, y in zip(inputs, labels, strict=True):
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        table = optimizer.decisions().loc[list(SHOWN)]
        weights = dict(network.named_parameters())
        norms = [weights[layer].detach().norm().item() for layer in SHOWN]
        rows.append({"loss": [loss.item()], "lambda": table["lambda"].tolist(), "mu_adam": table["mu_adam"].tolist(), "norm": norms})
    return rows


@pytest.mark.parametrize("name", SHIPPED)
def test_first_steps_are_as_they_were(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())[name]
    for k, (now, then) in enumerate(zip(first_steps(name), golden, strict=True), start=1):
        for key, values in then.items():
            assert now[key] == pytest.approx(values, rel=1e-4), f"{key} in step {k}"


if __name__ == "__main__":
    rounded = {
        name: [{key: [float(f"{v:.8g}") for v in values] for key, values in row.items()} for row in first_steps(name)] for name in SHIPPED
    }
    GOLDEN.write_text(json.dumps(rounded, indent=1) + "\n")
