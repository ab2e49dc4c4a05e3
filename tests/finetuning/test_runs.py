"""Runs on the shipped network and on others."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from l3rs.files import append_rows
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.runs import FIELDS, Run, execute, row
from l3rs.finetuning.tasks import TaskConfig
from l3rs.finetuning.unroll import Report
from l3rs.finetuning.workbench import Workbench, workbench
from l3rs.finetuning.workload import Workload
from l3rs.meta.config import MetaTrainConfig
from l3rs.networks.create import head_of, resnet
from l3rs.networks.head_start import head_start

ROOT = Path(__file__).parent.parent.parent
SHIPPED = Workload(width=16, weights=str(ROOT / "l3rs" / "networks" / "weights" / "resnet34-w16-icons.safetensors"))
ADAM, GENERALIST = Arm("Adam", "adam", 0.003), Arm("L3RS", "l3rs", learned="icons-generalist")
RUN = Run("test", ADAM, 2, 0, "meta-train")


@pytest.fixture
def tiny(tmp_path: Path) -> Workload:
    path = tmp_path / "resnet18-w4-icons.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in resnet(18, 4, 1, 7).state_dict().items()}, path)
    return Workload(model="resnet18", width=4, weights=str(path))


def test_a_run_that_names_no_network_is_on_the_shipped_one() -> None:
    one, other = execute(RUN), execute(replace(RUN, workload=SHIPPED))
    assert (one.train_losses, one.accuracy, one.loss) == (other.train_losses, other.accuracy, other.loss)


def test_a_run_on_another_network(tiny: Workload) -> None:
    report = execute(replace(RUN, workload=tiny, arm=GENERALIST))
    assert len(report.train_losses) == 2
    assert report.train_losses != execute(replace(RUN, workload=tiny)).train_losses
    assert workbench(tiny) is workbench(tiny)
    assert workbench(tiny) is not workbench()


def test_what_dropout_draws_is_a_function_of_the_task(tmp_path: Path) -> None:
    workload = Workload(model="test_vit", model_args={"proj_drop_rate": 0.5, "img_size": 32}, from_scratch=True, channels=1)
    run = Run("c", Arm("Adam", "adam", lr=1e-3), 2, 0, "meta-test", workload=workload)
    torch.manual_seed(0)
    first = execute(run)
    torch.manual_seed(1)
    assert execute(run).train_losses == first.train_losses
    still = replace(run, workload=replace(workload, model_args={"proj_drop_rate": 0.0, "img_size": 32}))
    assert execute(still).train_losses != first.train_losses


def test_a_workbench_puts_another_network_back_to_its_start(tiny: Workload) -> None:
    bench = Workbench(tiny, TaskConfig())
    before = {k: v.clone() for k, v in bench.network_for(5).state_dict().items()}
    assert sum(p.numel() for p in bench.network.parameters()) == sum(p.numel() for p in resnet(18, 4, 1, 25).parameters())
    bench.network(torch.ones(4, 1, 32, 32)).sum().backward()
    with torch.no_grad():
        for p in bench.network.parameters():
            p.add_(1)
    after = bench.network_for(5)
    assert all(torch.equal(v, before[k]) for k, v in after.state_dict().items())
    assert all(p.grad is None for p in after.parameters())


def test_a_run_that_starts_with_a_head_in_closed_form(tiny: Workload) -> None:
    bench = Workbench(tiny, TaskConfig())
    heads = []
    for batches, steps in ((2, 2), (9, 2), (2, 3), (3, 3)):
        tasks, task, network = bench.ready("meta-train", 0, steps, "start", batches)
        found = [p.detach().clone() for p in head_of(network).parameters()]
        head_start(bench.network_for(task.head_seed), [task.batch(tasks.images, i) for i in range(min(batches, steps))])
        assert all(torch.equal(a, b) for a, b in zip(found, head_of(network).parameters(), strict=True))
        heads.append(found[0])
    assert torch.equal(heads[0], heads[1])  # no more batches than the run has
    assert torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[2], heads[3])
    random, first = (execute(replace(RUN, workload=tiny, arm=replace(ADAM, head=head))) for head in ("random", "start"))
    assert first.train_losses[0] < random.train_losses[0] - 0.05
    assert execute(replace(RUN, workload=tiny, arm=replace(ADAM, head="start"))).train_losses == first.train_losses  # remembered


@pytest.mark.parametrize(("setting", "said"), [({"head": "zero"}, "must be one of random, start"), ({"head_batches": 0}, "at least 1")])
def test_a_head_that_there_is_not(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(ADAM, **setting)
    with pytest.raises(ValueError, match=said):
        MetaTrainConfig(**setting)


def test_a_narrow_network_has_the_gradients_that_it_has_in_torchs_own_memory_format(tiny: Workload) -> None:
    """oneDNN writes out of bounds where strided 1x1 convolutions of few channels are in channels_last: wrong gradients, or a crash."""
    bench = Workbench(tiny, TaskConfig())
    plain = resnet(18, 4, 1, 25)
    plain.load_state_dict(bench.network_for(5).state_dict())
    images = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for network in (bench.network, plain):
        network(images).logsumexp(1).sum().backward()
    for (name, p), q in zip(bench.network.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-4), name


def test_a_backbone_that_is_not_there_or_is_another(tiny: Workload) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.safetensors are not a file"):
        Workbench(replace(tiny, weights="nowhere.safetensors"), TaskConfig())
    with pytest.raises(ValueError, match=r"another network: for layer1\.2\.conv1\.weight they have no such tensor"):
        Workbench(replace(tiny, model="resnet34"), TaskConfig())


def test_a_row_of_a_run(tmp_path: Path) -> None:
    report = Report(accuracy={2: 0.5}, loss={2: 1.25}, seconds=0.1)
    append_rows(tmp_path / "rows.csv", [row(RUN, report, 2)], FIELDS)
    append_rows(tmp_path / "rows.csv", [row(RUN, report, 2)], FIELDS)
    assert (tmp_path / "rows.csv").read_text().splitlines()[1:] == ["test,adam,0.003,2,0,,0.5,1.25,0.1"] * 2


@pytest.mark.slow
def test_processes_end_with_the_one_that_gives_them_work(tmp_path: Path) -> None:
    """A killed comparison would leave them waiting for ever."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\nfrom l3rs.finetuning.runs import execute_all\n\n"
        "def work(run):\n    print(os.getpid(), flush=True)\n    time.sleep(600)\n\n"
        "if __name__ == '__main__':\n    list(execute_all([1], 1, work))\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        try:
            assert is_there(worker)
            parent.kill()
            waited = 0.0
            while is_there(worker) and waited < 20:
                time.sleep(0.1)
                waited += 0.1
            assert not is_there(worker)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


def is_there(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False
