"""Loading in processes: how many there is shared memory for."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import write_tree

from l3rs.data.loader import workers_that_fit
from l3rs.lightning import ImageFolderDataModule

IMAGE = 4 * 3 * 224 * 224


def has(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free // 4096, f_frsize=4096))


@pytest.mark.parametrize(
    ("free", "batch", "loaders", "fit"),
    [
        (64 << 10, 1, 1, 8),
        (64 << 10, 64 * IMAGE, 2, 0),
        (64 << 20, 64 * IMAGE, 2, 0),  # of Docker, unless told otherwise
        (1 << 30, 64 * IMAGE, 2, 4),
        (1 << 30, 64 * IMAGE, 1, 8),
    ],
)
def test_as_many_processes_as_there_is_shared_memory_for(
    free: int, batch: int, loaders: int, fit: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has(free, monkeypatch)
    assert workers_that_fit(8, batch, loaders) == fit
    said = capsys.readouterr().err
    assert said == ("" if fit == 8 else f"l3rs: /dev/shm has room for the batches of {fit} processes that decode, not of 8; "
                    "docker run --shm-size gives more\n")  # fmt: skip


def test_where_there_is_no_shared_memory_to_ask_for_all_are_taken(tmp_path: Path) -> None:
    assert workers_that_fit(8, 1 << 60, shared=tmp_path / "none") == 8


def test_images_are_decoded_in_this_process_where_shared_memory_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has(64 << 10, monkeypatch)
    data = ImageFolderDataModule(write_tree(tmp_path / "photos", {"ant": 5, "bee": 5}, 20, 20), batch_size=4, workers=2)
    assert data.workers == 0
    assert "/dev/shm has room" in capsys.readouterr().err
    assert len(next(iter(data.train_dataloader()))[1]) == 4
