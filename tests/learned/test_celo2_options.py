"""What Celo2 has beside the contract: Adam for vectors and for what is named, and weight decay."""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (before timm)

import pytest
import torch
from conftest import small_network, train
from forms import make, theta
from torch import nn

from l3rs.learned import Celo2
from l3rs.learned.celo2 import newton_schulz


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adam_moves_what_is_named(dtype: torch.dtype) -> None:
    layers = nn.ModuleDict({"embed": nn.Embedding(5, 3), "out": nn.Linear(3, 3), "late": nn.Embedding(4, 3)}).to(dtype)
    late = layers["late"].weight.requires_grad_(False)
    optimizer = make("Celo2", layers.named_parameters(), adam_names="embed|late")
    late.requires_grad_(True)
    for p in layers.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    by_adam = {name for name, p in layers.named_parameters() if "adam/m" in optimizer.state[p]}
    assert by_adam == {"embed.weight", "out.bias", "late.weight"}
    assert set(optimizer.state[layers["out"].weight]) == {"momentum", "second", "row", "col"}


def test_adamw_of_vectors_is_that_of_torch() -> None:
    p, q = (nn.Parameter(torch.linspace(-1, 1, 9)) for _ in range(2))
    optimizer = Celo2([p], theta(Celo2), lr=0.01, weight_decay=0.1, adam_lr_mult=3.0)
    reference = torch.optim.AdamW([q], lr=0.03, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for _ in range(5):
        p.grad = torch.randn(9)
        q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_adam_of_vectors_is_not_corrected_and_takes_twenty_times_the_learning_rate() -> None:
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([1.0, -4.0])
    Celo2([p], theta(Celo2), lr=0.01, vectors="adam").step()
    torch.testing.assert_close(p.detach(), -0.2 * 0.1 / 0.05**0.5 * torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize("form", ["Celo2", "Celo2-base"])
def test_weight_decay_is_decoupled(form: str) -> None:
    network, plain = small_network(), small_network()
    train(network, make(form, network.parameters(), weight_decay=0.5), range(1))
    train(plain, make(form, plain.parameters()), range(1))
    for p, q, start in zip(network.parameters(), plain.parameters(), small_network().parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.02 * 0.5 * start, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (4, 6, 3, 3), (5, 5, 2, 2)])
def test_matrices_are_orthogonalized_the_same_some_at_a_time(
    shape: tuple[int, ...], layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    together = newton_schulz(start.clone())
    monkeypatch.setattr("l3rs.learned.celo2.TOGETHER", 50)
    torch.testing.assert_close(newton_schulz(start.clone()), together)
    assert together.shape == shape
    assert not torch.allclose(together, start)
    values = torch.linalg.svdvals(together.flatten(2).movedim(-1, 0))
    assert values.min() > 0.3
    assert values.max() < 1.3
