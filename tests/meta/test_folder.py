"""The folder of a run: whole files, several states, one process at a time, one config, and what is said where the disk is full."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import tensorboardX.record_writer
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from small_runs import Quadratic, arguments, bits, quick, same

from l3rs import files
from l3rs.cli import main
from l3rs.data.splits import ClassSplit
from l3rs.files import TEMPORARY, write_atomically
from l3rs.finetuning.workload import Workload
from l3rs.meta.config import MetaTrainConfig, NESConfig
from l3rs.meta.folder import CURVE, MetaTrainFolder, last_generation
from l3rs.meta.nes import NES
from l3rs.meta.problem import MetaTrainingError
from l3rs.meta.train import meta_train
from l3rs.run_folder import FolderError
from l3rs.schedules import seal
from l3rs.schedules.find import CHECKPOINTS, load
from l3rs.schedules.learned import Learned
from l3rs.schedules.seal import CheckpointError

FULL = Path("/dev/full")  # takes nothing: "No space left on device"
full_disk = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


def search() -> NES:
    return NES(Quadratic(torch.zeros(3)), torch.ones(3), NESConfig(population=4))


def row(generation: int) -> dict[str, float | int | str]:
    numbers = {name: 0.125 for name in CURVE if not name.startswith("validation")}
    return numbers | {"generation": generation, "steps": 3, "diverged": 0, "failed": 0, "seconds": 12.34}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three generations without a disturbance."""
    out = tmp_path_factory.mktemp("straight")
    meta_train(quick(), out, progress=False)
    return out


def ends_as(out: Path, straight: Path) -> None:
    """All that is left of a run is what a run without a disturbance leaves."""
    assert same(bits(out, 3), bits(straight, 3))
    timing = ["inner_steps_per_second", "seconds"]
    curves = [pd.read_csv(folder / "curve.csv").drop(columns=timing) for folder in (out, straight)]
    pd.testing.assert_frame_equal(*curves, check_exact=True)
    assert not list(out.glob(f"**/{TEMPORARY}"))
    assert same(load_file(out / "quick.safetensors"), load_file(straight / "quick.safetensors"))


@contextmanager
def no_room_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is written there meets a real error of the system."""
    beside = files._beside

    def full(path: Path) -> Path:
        temporary = beside(path)
        if path == file:
            temporary.unlink()
            temporary.symlink_to(FULL)
        return temporary

    with monkeypatch.context() as patch:
        patch.setattr(files, "_beside", full)
        if file.suffix == ".png":  # written by Matplotlib, in place
            file.symlink_to(FULL)
        yield
    if file.is_symlink():
        file.unlink()


def test_a_crash_between_write_and_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", b"old")

    def crash(source: Path, target: Path) -> None:
        assert Path(source).read_bytes() == b"new"
        raise OSError(errno.EIO, "crash")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="crash"):
        write_atomically(tmp_path / "file", b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"old"}


def test_ctrl_c_in_the_middle_of_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"old"}


def test_the_last_three_states_are_kept(tmp_path: Path) -> None:
    nes = search()
    assert last_generation(tmp_path) == 0
    with MetaTrainFolder(tmp_path, quick()) as folder:
        for _ in range(12):
            nes.step()
            folder.save_state(nes)
    assert [p.name for p in folder.states()] == [f"state-0000{g}.safetensors" for g in (12, 11, 10)]
    assert last_generation(tmp_path) == 12
    other = search()
    folder.load_state(other)
    assert (other.generation, other.center.tolist()) == (12, nes.center.tolist())


def without_v(file: Path) -> None:
    save_file({k: v for k, v in load_file(file).items() if k != "v"}, file)


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-100]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(bytes(file.stat().st_size)),
        without_v,
        lambda file: save_file(load_file(file) | {"center": torch.zeros(4)}, file),
        lambda file: file.write_bytes(file.read_bytes()[:-9] + b"\x55" + file.read_bytes()[-8:]),
    ],
    ids=["torn", "empty", "zeros", "incomplete", "of another size", "changed"],
)
def test_a_corrupt_newest_state_is_passed_over(corrupt: Callable[[Path], None], tmp_path: Path) -> None:
    with MetaTrainFolder(tmp_path, quick()) as folder:
        nes, other = search(), search()
        for _ in range(4):
            before = nes.center
            nes.step()
            folder.save_state(nes)
        corrupt(tmp_path / "state-000004.safetensors")
        with pytest.warns(UserWarning, match=r"state-000004.safetensors cannot be read .*; going on from the state before it"):
            folder.load_state(other)
        assert other.generation == 3
        assert torch.equal(other.center, before)
        other.step()
        assert torch.equal(other.center, nes.center)


def test_a_corrupt_newest_state_costs_one_generation_and_no_bit(straight: Path, tmp_path: Path) -> None:
    meta_train(quick(2), tmp_path, progress=False)
    file = tmp_path / "state-000002.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"state-000002.safetensors cannot be read .*; going on from the state before it"):
        meta_train(quick(), tmp_path, progress=False)
    ends_as(tmp_path, straight)


def test_where_no_state_can_be_read_new_ones_are_kept(tmp_path: Path) -> None:
    with MetaTrainFolder(tmp_path, quick()) as folder:
        for generation in (7, 8, 9):
            (tmp_path / f"state-{generation:06d}.safetensors").write_bytes(b"x")
        nes = search()
        with pytest.warns(UserWarning, match="cannot be read"):
            folder.load_state(nes)
        nes.step()
        folder.save_state(nes)
        assert last_generation(tmp_path) == nes.generation == 1
        other = search()
        folder.load_state(other)  # and nothing is warned of twice
        assert other.generation == 1


def test_files_that_are_called_like_states_are_none(tmp_path: Path) -> None:
    with MetaTrainFolder(tmp_path, quick()) as folder:
        nes = search()
        nes.step()
        folder.save_state(nes)
        for name in ("state-of-the-art", "state-backup"):
            shutil.copy(tmp_path / "state-000001.safetensors", tmp_path / f"{name}.safetensors")
        assert [file.name for file in folder.states()] == ["state-000001.safetensors"]
        assert last_generation(tmp_path) == 1
    for name in ("state-000007", "theta-00002"):
        with pytest.raises(ValueError, match="name must not be that of a state or of a generation"):
            replace(quick(), name=name)


def test_a_damaged_cell_costs_its_row(tmp_path: Path) -> None:
    with MetaTrainFolder(tmp_path, quick()) as folder:
        for generation in (1, 2):
            folder.append(row(generation))
        (tmp_path / "curve.csv").write_text((tmp_path / "curve.csv").read_text().replace("2,3,0.125", "2,3,0.1x5"))
        assert [found["generation"] for found in folder.curve()] == ["1"]


def test_without_its_curve_a_run_says_what_is_missing(straight: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(straight, tmp_path / "run"))
    (out / "curve.csv").unlink()
    with pytest.raises(MetaTrainingError, match=r"curve\.csv has no generation that was validated"):
        meta_train(quick(), out, progress=False)


def test_a_row_torn_anywhere_is_none(tmp_path: Path) -> None:
    with MetaTrainFolder(tmp_path, quick()) as folder:
        nes = search()
        for _ in range(2):
            nes.step()
            folder.append(row(nes.generation))
        folder.save_state(nes)
        whole = (tmp_path / "curve.csv").read_text()
        folder.append(row(3))
        both = (tmp_path / "curve.csv").read_text()
        for length in range(len(whole), len(both) + 1, 3):  # a row is written before its state, so its generation is made again
            (tmp_path / "curve.csv").write_text(both[:length])
            folder.load_state(nes)
            assert (tmp_path / "curve.csv").read_text() == whole
        for length in range(whole.index("\n")):  # even one of which the head is torn
            (tmp_path / "curve.csv").write_text(whole[:length])
            folder.load_state(nes)
            folder.append(row(3))
            assert [r["generation"] for r in folder.curve()] == ["3"]


def test_a_curve_of_a_version_with_fewer_columns_goes_on(tmp_path: Path) -> None:
    (tmp_path / "curve.csv").write_text("generation,mean_loss,extra,seconds\n0,2.5,x,1\n1,2.4,x,1\n")
    with MetaTrainFolder(tmp_path, quick()) as folder:
        nes = search()
        nes.generation = 1
        folder.load_state(nes)
        folder.append(row(2))
    curve = pd.read_csv(tmp_path / "curve.csv")
    assert tuple(curve.columns) == CURVE
    assert curve.generation.tolist() == [0, 1, 2]
    assert curve.mean_loss.tolist() == [2.5, 2.4, 0.125]


def test_files_that_a_config_names_are_those_that_the_run_began_with(tmp_path: Path) -> None:
    """The same paths may hold another split, or other weights."""
    split, weights = tmp_path / "split.json", tmp_path / "weights.safetensors"
    names = [f"c{i}" for i in range(8)]

    def write(train: list[str]) -> None:
        classes = {"pretrain": [], "meta-train": train, "meta-validation": names[4:6], "meta-test": names[6:]}
        ClassSplit("own", 0, classes).write(split)

    def config(file: Path = split) -> MetaTrainConfig:
        return replace(quick(), workload=Workload(str(file), data=str(tmp_path), model="resnet18", width=4, weights=str(weights)))

    write(names[:4])
    weights.write_bytes(b"first")
    with MetaTrainFolder(tmp_path / "run", config()) as folder:
        contents = json.loads((folder.path / "config.json").read_text())["contents"]
    with MetaTrainFolder(tmp_path / "another", config(Path(shutil.copy(split, tmp_path / "moved.json")))) as folder:
        assert json.loads((folder.path / "config.json").read_text())["contents"] == contents
    weights.write_bytes(b"second")
    with pytest.raises(FolderError, match="whose run has another contents"):
        MetaTrainFolder(tmp_path / "run", config())
    weights.write_bytes(b"first")
    write(names[:3])
    with pytest.raises(FolderError, match="whose run has another contents"):
        MetaTrainFolder(tmp_path / "run", config())
    write(names[:4])
    MetaTrainFolder(tmp_path / "run", config()).close()


def test_what_a_run_started_from_is_what_it_goes_on_from(tmp_path: Path) -> None:
    given = tmp_path / "given.safetensors"
    shutil.copy(CHECKPOINTS / "icons-generalist.safetensors", given)
    config = replace(quick(), start=(str(given),), specialist=False)
    MetaTrainFolder(tmp_path / "run", config).close()
    MetaTrainFolder(tmp_path / "run", config).close()
    shutil.copy(CHECKPOINTS / "generalist.safetensors", given)
    with pytest.raises(FolderError, match="whose run has another started_from"):
        MetaTrainFolder(tmp_path / "run", config)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    refused = re.escape(f"where no other process is at work (got {tmp_path})")
    with MetaTrainFolder(tmp_path, quick()), pytest.raises(FolderError, match=refused):
        MetaTrainFolder(tmp_path, quick())
    holding = f"from filelock import FileLock; lock = FileLock({str(tmp_path / 'lock')!r}); lock.acquire(); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(FolderError, match="no other process is at work"):
            meta_train(quick(), tmp_path, progress=False)
        other.kill()  # the lock of a process that is dead is none
    with MetaTrainFolder(tmp_path, quick()):
        pass


def test_a_folder_that_cannot_be_made_or_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(FolderError, match=rf"a folder that can be written \(got {path}: .+\)"):
            MetaTrainFolder(path, quick())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FolderError, match=r"that can be written \(got .*: Permission denied\)"):
        MetaTrainFolder(tmp_path, quick())


@full_disk
@pytest.mark.parametrize(
    ("file", "saved"),
    [
        pytest.param("config.json", 0, marks=pytest.mark.slow),
        ("curve.csv", 0),
        ("state-000002.safetensors", 1),
        pytest.param("curve.png", 0, marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_costs_nothing_that_was_there(
    file: str, saved: int, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with no_room_for(tmp_path / file, monkeypatch), pytest.raises(FolderError) as stop:
        meta_train(quick(), tmp_path, progress=False)
    said = str(stop.value)
    assert str(tmp_path / file) in said or file == "curve.png"
    assert f"could not be written (No space left on device); everything up to generation {saved} is saved in {tmp_path}" in said
    assert last_generation(tmp_path) == saved
    if saved:
        assert same(bits(tmp_path, 1), bits(straight, 1))
    meta_train(quick(), tmp_path, progress=False)
    ends_as(tmp_path, straight)


@pytest.mark.parametrize(("name", "saved"), [("theta-00003", 2), ("quick", 3)])
def test_a_schedule_that_cannot_be_written_costs_nothing_else(
    name: str, saved: int, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    def save_learned(folder: MetaTrainFolder, learned: Learned, file: Path) -> None:
        with monkeypatch.context() as patch:
            if file.name.startswith(name):
                patch.setattr(seal, "save_file", no_room)
            write(folder, learned, file)

    write = MetaTrainFolder.save_learned
    with monkeypatch.context() as patch:
        patch.setattr(MetaTrainFolder, "save_learned", save_learned)
        expected = f"{name}.safetensors could not be written (I/O error: No space left on device (os error 28)); everything up to"
        with pytest.raises(FolderError, match=re.escape(f"{expected} generation {saved} is saved")):
            meta_train(quick(), tmp_path, progress=False)
    meta_train(quick(), tmp_path, progress=False)
    ends_as(tmp_path, straight)


@full_disk
def test_a_full_disk_under_tensorboard_ends_the_run_instead_of_hanging_it(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FULL.open("wb") as full, monkeypatch.context() as patch:
        patch.setattr(tensorboardX.record_writer, "open_file", lambda _: full)
        with pytest.raises(FolderError, match=r"TensorBoard's file .* could not be written \(No space left on device\)"):
            meta_train(quick(), tmp_path, progress=False)
        full.raw.close()
    meta_train(quick(), tmp_path, progress=False)
    ends_as(tmp_path, straight)


@full_disk
def test_the_command_says_in_one_line_that_the_disk_is_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with no_room_for(out / "state-000001.safetensors", monkeypatch), pytest.raises(SystemExit) as stop:
        main(arguments(quick(), out))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1] == (
        f"l3rs: error: {out}/state-000001.safetensors could not be written (No space left on device); everything up to generation 0 is "
        f"saved in {out}. Make room, or remove the cause, and give the same command again: it resumes"
    )


def test_a_folder_takes_one_config_but_more_of_it(tmp_path: Path) -> None:
    MetaTrainFolder(tmp_path, quick()).close()
    free = {"workers": 2, "ray_address": "auto", "gpus_per_actor": 0.5, "finalists": 1, "final_tasks": 9, "cache": "elsewhere"}
    MetaTrainFolder(tmp_path, quick(9, **free)).close()
    assert json.loads((tmp_path / "config.json").read_text())["generations"] == 9
    before = (tmp_path / "config.json").read_bytes()
    for changes, named in (
        ({"nes": NESConfig(population=4, sigma=0.1, lr=0.06)}, "nes"),
        ({"steps": (2, 4), "penalty": 5.0}, "steps, penalty"),
    ):
        with pytest.raises(FolderError, match=rf"got {tmp_path}, whose run has another {named}\)"):
            MetaTrainFolder(tmp_path, quick(**changes))
    assert (tmp_path / "config.json").read_bytes() == before
    MetaTrainFolder(tmp_path, quick()).close()  # those refused left no lock


def test_fewer_generations_than_there_are_are_refused(straight: Path) -> None:
    before = (straight / "config.json").read_bytes()
    made = last_generation(straight)
    with pytest.raises(FolderError, match=rf"generations must be at least {made}, which the run in .* has made already \(got 1\)"):
        meta_train(quick(1), straight, progress=False)
    assert (straight / "config.json").read_bytes() == before


def test_a_state_is_no_schedule(straight: Path) -> None:
    newest = max(straight.glob("state-*"))
    with pytest.raises(CheckpointError, match=r"state-.* is a state that a meta-training resumes from; give the schedule in its folder"):
        load(newest)


def test_settings_that_there_were_not_yet_had_the_defaults_of_today(tmp_path: Path) -> None:
    MetaTrainFolder(tmp_path, quick()).close()
    file = tmp_path / "config.json"
    old = json.loads(file.read_text())
    del old["precision"], old["nes"]["sigma_half_life"]
    old["dropped_since"] = 1
    file.write_text(json.dumps(old))
    with pytest.raises(FolderError, match=r"another precision\)"):
        MetaTrainFolder(tmp_path, quick(precision="bfloat16"))
    with pytest.raises(FolderError, match=r"another nes\)"):
        MetaTrainFolder(tmp_path, quick(nes=NESConfig(population=4, sigma=0.1, lr=0.05, sigma_half_life=9)))
    MetaTrainFolder(tmp_path, quick()).close()
    assert json.loads(file.read_text())["precision"] == "float32"


@pytest.mark.parametrize("text", ["", "{", "[1]", "7"])
def test_a_config_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    for _ in range(2):  # and the lock is given back
        with pytest.raises(FolderError, match=f"{tmp_path / 'config.json'} cannot be read"):
            MetaTrainFolder(tmp_path, quick())
    assert (tmp_path / "config.json").read_text() == text
