"""BatchNorm's statistics of the last training batches."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import batch, small_network
from torch import Tensor, nn

import l3rs
from l3rs.networks.recent_statistics import RecentStatistics


def shared_network(momentum: float | None = 0.1) -> nn.Sequential:
    network = small_network().train()
    network[1].momentum = momentum
    network[1].running_mean.fill_(3.0)
    network[1].num_batches_tracked.fill_(7)
    return network


def of_batch(network: nn.Sequential, k: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        x = network[0](batch(k)[0])
    return x.mean((0, 2, 3)), x.var((0, 2, 3))


def move(network: nn.Sequential) -> None:
    """A step."""
    with torch.no_grad():
        network[0].weight.add_(0.05)


def run(network: nn.Sequential, steps: int, **options: float) -> tuple[RecentStatistics, list[tuple[Tensor, Tensor]]]:
    recent = RecentStatistics(network, **options)  # type: ignore[arg-type]
    seen = []
    for k in range(steps):
        seen.append(of_batch(network, k))
        network(batch(k)[0])
        move(network)
    return recent, seen


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
@pytest.mark.parametrize(("steps", "options", "number"), [(10, {}, 2), (2, {}, 1), (30, {"share": 0.5, "last": 4}, 4)])
def test_they_are_the_means_over_the_last_batches(momentum: float | None, steps: int, options: dict[str, float], number: int) -> None:
    network = shared_network(momentum)
    recent, seen = run(network, steps, **options)
    running = copy.deepcopy(network[1].state_dict())
    expected = [torch.stack(t[-number:]).mean(0) for t in zip(*seen, strict=True)]
    with recent.applied():
        torch.testing.assert_close([network[1].running_mean, network[1].running_var], expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(t, network[1].state_dict()[name]) for name, t in running.items())
    recent.apply()
    torch.testing.assert_close([network[1].running_mean, network[1].running_var], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_layer_that_a_pass_goes_through_twice_or_not_at_all(momentum: float | None) -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.unused = nn.BatchNorm1d(4, momentum=momentum), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(x) + self.shared(x)

    network = Twins().train()
    x = 0.3 * torch.randn(64, 4) + 2
    with RecentStatistics(network):
        for _ in range(5):
            network(x)
    torch.testing.assert_close(network.shared.running_mean, x.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network.shared.running_var, x.var(0), rtol=1e-3, atol=1e-4)
    assert torch.equal(network.unused.running_mean, torch.zeros(4))


def test_a_layer_that_the_last_pass_left_out_keeps_what_it_had_and_one_without_a_count_is_left_alone() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.uncounted = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)
            self.uncounted.num_batches_tracked = None

        def forward(self, x: Tensor, both: bool) -> Tensor:
            return self.uncounted(self.a(x) + (self.b(x) if both else 0))

    network = Either().train()
    x = torch.randn(64, 4) + 2
    recent = RecentStatistics(network, share=1.0)
    for both in (True, True, False):
        network(x, both)
    means = recent.means()
    assert sorted(means) == ["a.running_mean", "a.running_var", "b.running_mean", "b.running_var"]
    torch.testing.assert_close(means["b.running_mean"], x.mean(0), rtol=1e-4, atol=1e-4)
    network.b.eval()
    network(x, True)
    assert sorted(recent.means()) == ["a.running_mean", "a.running_var"]


def test_statistics_in_which_a_batch_is_a_rounding_error_stay_the_running_ones() -> None:
    network = nn.Sequential(nn.BatchNorm1d(4, momentum=None), nn.BatchNorm1d(4)).train()
    network[0].num_batches_tracked.fill_(1_000_000)
    alone = copy.deepcopy(network)
    x = 0.3 * torch.randn(64, 4) + 3
    with RecentStatistics(network):
        network(x)
    alone(x)
    assert torch.equal(network[0].running_var, alone[0].running_var)
    assert not torch.equal(network[1].running_var, alone[1].running_var)


def test_statistics_of_half_precision_stay_the_running_ones() -> None:
    """What a batch adds to them is lost in their rounding."""
    network = nn.Sequential(nn.BatchNorm1d(4)).bfloat16().train()
    alone = copy.deepcopy(network)
    with RecentStatistics(network):
        for k in range(5):
            x = (torch.randn(32, 4, generator=torch.Generator().manual_seed(k)) + 5).bfloat16()
            network(x)
            alone(x)
    assert torch.equal(network[0].running_mean, alone[0].running_mean)


def test_training_sees_nothing_of_it() -> None:
    plain, followed = shared_network(), shared_network()
    for k in range(4):
        plain(batch(k)[0])
        move(plain)
    recent, _ = run(followed, 4)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), followed.state_dict().values(), strict=True))
    followed.eval()(batch(9)[0])  # an evaluation is no batch
    assert recent.taken == 4


def test_in_a_with_the_network_ends_with_them_unless_it_fails() -> None:
    network = shared_network()
    with l3rs.RecentStatistics(network):
        network(batch(0)[0])
    torch.testing.assert_close(network[1].running_mean, of_batch(network, 0)[0], rtol=1e-4, atol=1e-5)
    before = network[1].running_mean.clone()
    network(batch(1)[0])
    assert not torch.equal(network[1].running_mean, of_batch(network, 1)[0])  # it is followed no more
    assert not network._forward_hooks
    before = network[1].running_mean.clone()
    with pytest.raises(RuntimeError, match="conv2d"), RecentStatistics(network):
        network(batch(0)[0][0, 0, 0])
    assert torch.equal(network[1].running_mean, before)


def test_passes_that_go_around_it_are_told() -> None:
    """Else a run would end with statistics that lag behind, without a word."""
    network = shared_network()
    with (
        pytest.warns(UserWarning, match=r"RecentStatistics saw no forward pass of Sequential, .* not its forward\(\)"),
        RecentStatistics(network),
    ):
        network.forward(batch(0)[0])
    with RecentStatistics(network):  # which nothing went through
        pass


def test_what_is_frozen_or_not_there_stays() -> None:
    frozen = shared_network()
    frozen[1].eval()
    for network in (frozen, nn.Sequential(nn.Flatten(), nn.Linear(64, 3))):
        before = copy.deepcopy(network.state_dict())
        with RecentStatistics(network) as recent:
            network(batch(0)[0])
        assert recent.taken == 0
        assert all(torch.equal(t, network.state_dict()[name]) for name, t in before.items())


def test_what_is_frozen_during_the_run_stays() -> None:
    """From then on the weights train against the running statistics."""
    network = shared_network()
    with RecentStatistics(network) as recent:
        for k in range(4):
            network(batch(k)[0])
            move(network)
        network[1].eval()
        frozen = copy.deepcopy(network[1].state_dict())
        with torch.no_grad():
            network.eval()(batch(8)[0])  # an evaluation does not count
        network.train()
        assert recent.means()
        network[1].eval()
        network(batch(4)[0])
        assert recent.means() == {}
    assert all(torch.equal(t, network[1].state_dict()[name]) for name, t in frozen.items())


def test_the_network_may_be_a_normalization_itself() -> None:
    network = nn.BatchNorm1d(3)
    with RecentStatistics(network) as recent:
        network(torch.arange(12.0).view(4, 3))
        assert list(recent.means()) == ["running_mean", "running_var"]
    torch.testing.assert_close(network.running_mean, torch.tensor([4.5, 5.5, 6.5]))


def test_a_network_that_compiles_itself_is_not_compiled_anew_for_each_batch() -> None:
    network, compiled = shared_network(), []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    with RecentStatistics(network) as recent:
        network.compile(backend=backend)
        counts = []
        for k in range(12):
            network(batch(k)[0])
            counts.append(len(compiled))
        assert recent.taken == 12
    assert counts[0] == counts[-1] > 0


def test_it_goes_on_from_its_state() -> None:
    whole, first = (run(shared_network(), steps)[0] for steps in (12, 6))
    network = first.network
    assert isinstance(network, nn.Sequential)
    first.close()
    second = RecentStatistics(network)
    second.load_state_dict(first.state_dict())
    for k in range(6, 12):
        network(batch(k)[0])
        move(network)
    assert all(torch.equal(t, second.means()[name]) for name, t in whole.means().items())


@pytest.mark.parametrize("wrong", [{"last": 0}, {"share": 0.0}, {"share": 1.1}])
def test_wrong_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        RecentStatistics(nn.Identity(), **wrong)  # type: ignore[arg-type]
