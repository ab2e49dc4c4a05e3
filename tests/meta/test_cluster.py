"""Meta-training on a Ray cluster of nodes of one core: also where one of them goes, and where there is less room than asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from small_runs import Told, bits, quick, same

import l3rs.meta.problem
import l3rs.meta.train
from l3rs.meta.problem import FineTuning, MetaTrainingError, places
from l3rs.meta.train import meta_train, processes, start

pytestmark = pytest.mark.slow
MEMORY = 80_000_000  # bytes; the least that Ray takes
LONG: dict[str, Any] = {"steps": (20, 20), "validate_every": 9}  # enough of them in a generation for a node to go


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the processes import these files, too
    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone")
    meta_train(quick(3, **LONG), out, progress=False)
    return out


class Leaving(Told):
    """A node leaves in the middle of the second generation."""

    leave: Any = staticmethod(lambda: None)

    def evaluate(self, x: Any) -> None:
        if self.is_main and self.evaluations == 1:
            threading.Timer(0.3, self.leave).start()
        super().evaluate(x)


def test_two_nodes_do_what_one_process_does(cluster: Cluster, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    monkeypatch.setattr(l3rs.meta.train, "FineTuning", Told)
    Told.made.clear()
    meta_train(quick(3, workers=2, ray_address=cluster.address, **LONG), tmp_path, progress=False)
    (problem,) = Told.made
    assert len(set(problem.nodes)) == 2  # one each
    assert problem.replaced == 0
    assert same(bits(tmp_path, 3), bits(alone, 3))


def test_a_node_that_goes_in_the_middle_costs_no_bit(
    cluster: Cluster, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    monkeypatch.setattr(l3rs.meta.problem, "PATIENCE", 15.0)  # Ray counts the cores of a node for a while after it has gone
    monkeypatch.setattr(l3rs.meta.train, "FineTuning", Leaving)
    monkeypatch.setattr(Leaving, "leave", staticmethod(lambda: cluster.remove_node(node, allow_graceful=False)))
    Told.made.clear()
    with pytest.warns(UserWarning, match="1 of 2 processes found no free core, or GPU; going on without"):
        meta_train(quick(3, workers=2, ray_address=cluster.address, **LONG), tmp_path, progress=False)
    (problem,) = Told.made
    assert problem.replaced >= 1
    assert problem.num_actors == 1
    assert same(bits(tmp_path, 3), bits(alone, 3))


def test_more_processes_than_cores_do_not_wait_for_ever(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quick(workers=3, ray_address=cluster.address)
    assert processes(config) == 3
    assert processes(quick(ray_address=cluster.address, workers=0)) == places(0) == 1
    monkeypatch.setattr(l3rs.meta.problem, "PATIENCE", 5.0)
    learned = start(config)
    problem = FineTuning(learned, config, 3)
    tasks = [(0, 2), (1, 2), (2, 2)]
    with pytest.warns(UserWarning, match="2 of 3 processes found no free core, or GPU; going on without"):
        found = problem.runs(learned.theta, "meta-validation", tasks)
    assert found == FineTuning(learned, quick()).runs(learned.theta, "meta-validation", tasks)
    monkeypatch.setattr(l3rs.meta.problem, "PATIENCE", 1.0)
    with pytest.raises(MetaTrainingError, match="none of 2 processes found a free core, or GPU, in 5 seconds"):
        FineTuning(learned, config, 2).runs(learned.theta, "meta-validation", tasks)  # the only core is taken
    problem.stop()
    with pytest.raises(ValueError, match=r"gpus_per_actor must be a share of a GPU that there is, or 0 for CPU \(got 0.5\)"):
        processes(quick(gpus_per_actor=0.5, ray_address=cluster.address))
