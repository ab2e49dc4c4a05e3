"""Decoded images on disk: what the decoder gives, once, whatever stops a build and whatever happens to the files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import noise, write_tree
from PIL import ExifTags, Image

from l3rs.data import cache
from l3rs.data.cache import CacheError, build, fingerprint, open_cache, size_in_bytes, size_in_words
from l3rs.data.decode import Decoder
from l3rs.data.images import ImageSet
from l3rs.data.trees import ImageTree, read_folder

DECODER = Decoder(8)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK", 3)


@pytest.fixture
def tree(tmp_path: Path) -> ImageTree:
    """Ten images, four chunks of them."""
    return read_folder(write_tree(tmp_path / "images", {"cat": 6, "dog": 4}, 12, 10))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded, as they are."""
    names: list[str] = []
    decode = Decoder.__call__

    def noted(self: Decoder, path: str | Path) -> np.ndarray:
        names.append(Path(path).name)
        return decode(self, path)

    monkeypatch.setattr(Decoder, "__call__", noted)
    return names


def make(tree: ImageTree, folder: Path, **options: bool) -> None:
    build(tree, DECODER, folder, workers=1, progress=False, **options)


def break_images(tree: ImageTree, *numbers: int) -> None:
    for i in numbers:
        (tree.root / tree.files[i]).write_bytes(b"no image")


# What is in it


@pytest.mark.parametrize("channels", [1, 3])
def test_the_pixels_are_those_of_the_decoder_in_the_order_of_the_tree(channels: int, tree: ImageTree, folder: Path) -> None:
    decoder = Decoder(8, channels, "bicubic")
    build(tree, decoder, folder, workers=1, progress=False)
    pixels, labels, validation = open_cache(folder, tree.classes)
    assert pixels.shape == (10, channels, 8, 8)
    for i, file in enumerate(tree.files):
        assert np.array_equal(pixels[i], decoder(tree.root / file))
    assert labels.tolist() == tree.labels.tolist()
    assert validation.tolist() == tree.validation.tolist()
    assert (folder / "pixels.u8").stat().st_size == size_in_bytes(10, decoder) == 10 * channels * 64


def test_labels_are_numbers_in_the_classes_that_are_asked_for(tree: ImageTree, folder: Path) -> None:
    make(tree, folder)
    assert open_cache(folder, ("ant", "dog", "cat"))[1].tolist() == [2] * 6 + [1] * 4
    with pytest.raises(CacheError, match="has images of class 'cat', which was not asked for"):
        open_cache(folder, ("dog",))


def test_what_is_done_to_the_tensor_is_not_done_to_the_file(tree: ImageTree, folder: Path) -> None:
    make(tree, folder)
    before = (folder / "pixels.u8").read_bytes()
    open_cache(folder, tree.classes)[0].zero_()
    assert (folder / "pixels.u8").read_bytes() == before


def test_workers_make_the_same_file(tree: ImageTree, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_images(tree, 4)
    make(tree, tmp_path / "alone", skip_broken=True)
    monkeypatch.setattr(cache, "START_UP", 0)  # else so few images are decoded by one
    build(tree, DECODER, folder, skip_broken=True, workers=2, progress=False)
    for name in ("pixels.u8", "index.csv", "chunks.txt", "done.json", "plan.json"):
        assert (folder / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


def test_a_second_build_decodes_nothing(tree: ImageTree, folder: Path, decoded: list[str]) -> None:
    make(tree, folder)
    assert decoded == [Path(file).name for file in tree.files]
    make(tree, folder)
    assert len(decoded) == 10


def test_files_and_classes_are_called_anything(tmp_path: Path, folder: Path) -> None:
    root = write_tree(tmp_path / "images", {'a,"b': 2, "NA": 2, " 狐 ": 2, "": 0}, 12, 10)
    for name in (b"caf\xe9.png", b"two\nlines.png", b"return\r.png"):
        try:
            noise("x", 3, 3).save(root / "NA" / os.fsdecode(name))
        except OSError:  # this file system wants UTF-8
            continue
    tree = read_folder(root)
    make(tree, folder)
    pixels, labels, _ = open_cache(folder, tree.classes, verify=True)
    assert labels.tolist() == tree.labels.tolist()
    assert len(pixels) == len(tree.files) >= 8


# Broken images


def test_broken_images_are_an_error_that_names_them(tree: ImageTree, folder: Path) -> None:
    break_images(tree, 1, 7)
    with pytest.raises(CacheError, match="2 of 10 images cannot be decoded; --skip-broken leaves them out") as error:
        make(tree, folder)
    assert all(f"{tree.root / tree.files[i]}: it is not an image" in str(error.value) for i in (1, 7))
    assert "more" not in str(error.value)


def test_of_many_broken_images_ten_are_named(tmp_path: Path, folder: Path) -> None:
    tree = read_folder(write_tree(tmp_path / "images", {"cat": 14}))
    break_images(tree, *range(13))
    with pytest.raises(CacheError, match="13 of 14 images cannot be decoded") as error:
        make(tree, folder)
    assert str(error.value).count("it is not an image") == 10
    assert f"and 3 more, in {folder / 'index.csv'}" in str(error.value)


def test_a_file_that_a_list_has_and_the_disk_has_not_is_broken(tree: ImageTree, folder: Path) -> None:
    (tree.root / tree.files[2]).unlink()
    with pytest.raises(CacheError, match=r"cat-002\.png: No such file or directory"):
        make(tree, folder)


def test_how_many_are_left_out_is_said(tree: ImageTree, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    break_images(tree, 1, 7)
    build(tree, DECODER, folder, skip_broken=True, workers=1)
    assert f"2 of 10 images cannot be decoded and are left out; {folder / 'index.csv'} says which" in "".join(capsys.readouterr())


def test_broken_images_are_left_out_and_no_image_is_decoded_again_for_it(tree: ImageTree, folder: Path, decoded: list[str]) -> None:
    break_images(tree, 1, 7)
    with pytest.raises(CacheError):
        make(tree, folder)
    make(tree, folder, skip_broken=True)
    assert len(decoded) == 10
    pixels, labels, validation = open_cache(folder, tree.classes, verify=True)
    assert labels.tolist() == [0, -1, 0, 0, 0, 0, 1, -1, 1, 1]
    assert not pixels[[1, 7]].any()
    images = ImageSet("x", pixels, labels, tree.classes, validation, (0.5,) * 3, (0.5,) * 3)
    used = np.concatenate([side for sides in images.by_class for side in sides])
    assert sorted(used.tolist()) == [0, 2, 3, 4, 5, 6, 8, 9]
    with pytest.raises(CacheError, match="2 of 10"):
        make(tree, folder)


# Stopped builds


def stop_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    decode = Decoder.__call__

    def stopped(self: Decoder, path: str | Path) -> np.ndarray:
        if Path(path).name == name:
            raise KeyboardInterrupt
        return decode(self, path)

    monkeypatch.setattr(Decoder, "__call__", stopped)


def test_a_build_that_was_killed_goes_on_after_its_last_chunk(tree: ImageTree, folder: Path, decoded: list[str], tmp_path: Path) -> None:
    break_images(tree, 1)
    make(tree, tmp_path / "straight", skip_broken=True)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "dog-001.png")  # the second of the third chunk
        with pytest.raises(KeyboardInterrupt):
            make(tree, folder, skip_broken=True)
    assert len((folder / "chunks.txt").read_text().splitlines()) == 2
    with pytest.raises(CacheError, match="is no finished cache; build it first"):
        open_cache(folder, tree.classes)
    decoded.clear()
    make(tree, folder, skip_broken=True)
    assert decoded == [Path(file).name for file in tree.files[6:]]
    for name in ("pixels.u8", "index.csv", "chunks.txt", "done.json"):
        assert (folder / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


class Deadly(Decoder):
    """Kills the process that it decodes in, as the system does where memory runs out."""

    def __call__(self, path: str | Path) -> np.ndarray:
        os._exit(9)


def test_a_process_that_was_killed_is_told(tree: ImageTree, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "START_UP", 0)
    with pytest.raises(CacheError, match=r"a decoding process was killed, maybe for want of memory; .*cache keeps what is done"):
        build(tree, Deadly(8), folder, workers=2, progress=False)
    make(tree, folder)
    open_cache(folder, tree.classes, verify=True)


def test_a_line_that_was_cut_anywhere_is_of_no_chunk(tree: ImageTree, folder: Path, decoded: list[str]) -> None:
    break_images(tree, 9)
    make(tree, folder, skip_broken=True)
    whole = {name: (folder / name).read_bytes() for name in ("chunks.txt", "pixels.u8", "index.csv")}
    start = whole["chunks.txt"].rindex(b"\n", 0, -1) + 1
    last = len(whole["chunks.txt"])
    for end in (*range(start, last, 13), last - 3, last - 2, last - 1):
        (folder / "done.json").unlink()
        (folder / "chunks.txt").write_bytes(whole["chunks.txt"][:end])
        decoded.clear()
        make(tree, folder, skip_broken=True)
        assert decoded == ["dog-003.png"]
        assert {name: (folder / name).read_bytes() for name in whole} == whole


def test_two_builds_at_once_take_turns(tree: ImageTree, folder: Path, decoded: list[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(make, tree, folder) for _ in range(2)]:
            done.result()
    assert len(decoded) == 10
    assert np.array_equal(open_cache(folder, tree.classes, verify=True)[0][3], DECODER(tree.root / tree.files[3]))


# The disk


def test_a_disk_that_is_too_small_is_told_before_anything_is_decoded(
    tree: ImageTree, folder: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(CacheError, match=r"decoding 10 images to 8 px takes 1\.9 kB of disk, and .*cache has 1\.0 kB left"):
        make(tree, folder)
    assert not decoded
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1920))
    make(tree, folder)


def test_what_a_stopped_build_has_written_need_not_be_free_again(tree: ImageTree, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tree, folder)
    (folder / "done.json").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    make(tree, folder)


def test_the_disk_that_imagenet25_takes() -> None:
    images = 500 * 1331
    assert size_in_words(size_in_bytes(images, Decoder(73))) == "10.6 GB"
    assert size_in_words(size_in_bytes(images, Decoder(256))) == "130.8 GB"
    assert size_in_words(size_in_bytes(images, Decoder(256, channels=1))) == "43.6 GB"
    assert [size_in_words(n) for n in (0, 999, 1500, 2.5e6, 1.5e12)] == ["0 B", "999 B", "1.5 kB", "2.5 MB", "1.5 TB"]


def test_a_folder_that_cannot_be_written(tree: ImageTree, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CacheError, match=r"the cache .*file/cache cannot be written \(Not a directory\); give another folder"):
        make(tree, tmp_path / "file" / "cache")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tree: ImageTree, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(CacheError, match="cannot be written"):
        make(tree, tmp_path / "locked" / "cache")


# What has changed since


def another_image(tree: ImageTree) -> None:
    noise("new", 5, 5).save(tree.root / "cat" / "new.png")


def a_larger_image(tree: ImageTree) -> None:
    noise("larger", 50, 50).save(tree.root / tree.files[0])


def one_image_less(tree: ImageTree) -> None:
    (tree.root / tree.files[0]).unlink()


@pytest.mark.parametrize("change", [another_image, a_larger_image, one_image_less])
@pytest.mark.parametrize("finished", [True, False])
def test_a_cache_of_other_images_is_refused(change: Callable[[ImageTree], None], finished: bool, tree: ImageTree, folder: Path) -> None:
    make(tree, folder)
    if not finished:
        (folder / "done.json").unlink()
    before = (folder / "pixels.u8").read_bytes()
    change(tree)
    with pytest.raises(CacheError, match=r"was made of other images, or otherwise \(.*tree differ\); remove it to make it again"):
        make(read_folder(tree.root), folder)
    assert (folder / "pixels.u8").read_bytes() == before


def test_a_cache_that_was_made_otherwise_is_refused(tree: ImageTree, folder: Path) -> None:
    make(tree, folder)
    with pytest.raises(CacheError, match=r"\(decoder differ\)"):
        build(tree, Decoder(8, interpolation="bicubic"), folder, progress=False)
    with pytest.raises(CacheError, match=r"\(tree differ\)"):
        make(read_folder(tree.root, seed=1), folder)  # other images are for validation


def test_a_tree_has_one_fingerprint_wherever_it_lies(tree: ImageTree, tmp_path: Path) -> None:
    shutil.copytree(tree.root, tmp_path / "elsewhere")
    assert fingerprint(read_folder(tmp_path / "elsewhere")) == fingerprint(tree)
    assert fingerprint(read_folder(tree.root, classes=("cat",))) != fingerprint(tree)


@pytest.mark.parametrize("finished", [True, False])
def test_a_cache_of_an_earlier_version_is_made_anew(finished: bool, tree: ImageTree, folder: Path, tmp_path: Path) -> None:
    """Its images are as they are stored, not as their EXIF orientation says."""
    make(tree, folder)
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"format": 1, "tree": "of other images"}))
    (folder / "pixels.u8").write_bytes(bytes(size_in_bytes(10, DECODER)))
    if not finished:
        (folder / "done.json").unlink()
    else:
        with pytest.raises(CacheError, match=r"is of version 1 of the format, and this version of l3rs reads \d; build it again"):
            open_cache(folder, tree.classes)
    make(tree, folder)
    make(tree, tmp_path / "fresh")
    assert np.array_equal(open_cache(folder, tree.classes, verify=True)[0], open_cache(tmp_path / "fresh", tree.classes)[0])


def test_a_cache_of_a_later_version_is_refused(tree: ImageTree, folder: Path) -> None:
    make(tree, folder)
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"format": 99}))
    with pytest.raises(CacheError, match=r"was made of other images, or otherwise \(format differ\)"):
        make(tree, folder)


def test_a_cache_has_photos_as_viewers_show_them(tmp_path: Path, folder: Path) -> None:
    root = write_tree(tmp_path / "images", {"cat": 1}, 12, 8)
    upright, exif = noise("x", 8, 8), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(root / "cat" / "turned.png", exif=exif)
    tree = read_folder(root)
    make(tree, folder)
    pixels = open_cache(folder, tree.classes)[0][tree.files.index("cat/turned.png")]
    assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(upright))


def test_what_is_passed_over_is_told_where_it_is_decoded(tree: ImageTree, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.heic", "b.HEIC", "c.txt"):
        (tree.root / "cat" / name).touch()
    for expected in (f"{tree.root}: passed over 2 .heic, 1 .txt\n", ""):
        make(read_folder(tree.root), folder)
        assert capsys.readouterr().err == expected


def test_a_named_pipe_among_images_is_broken(tree: ImageTree, folder: Path) -> None:
    os.mkfifo(tree.root / "cat" / "pipe.png")
    with pytest.raises(CacheError, match=r"1 of 11 images cannot be decoded.*\n.*pipe\.png: it is no file, but a named pipe"):
        make(read_folder(tree.root), folder)


def test_a_spreadsheet_computes_nothing_of_the_index(tmp_path: Path, folder: Path) -> None:
    tree = read_folder(write_tree(tmp_path / "images", {"=1+1": 2, "'quoted": 2, "-1": 2}, 12, 10))
    make(tree, folder)
    cells = [cell for line in (folder / "index.csv").read_text().splitlines() for cell in line.split(",")]
    assert {c[0] for c in cells if c} & set("=+-@") == set()
    assert open_cache(folder, tree.classes, verify=True)[1].tolist() == tree.labels.tolist()


def test_a_flipped_byte_is_found_where_all_is_read(tree: ImageTree, folder: Path) -> None:
    make(tree, folder)
    data = bytearray((folder / "pixels.u8").read_bytes())
    for at in (0, len(data) // 2, len(data) - 1):
        flipped = data.copy()
        flipped[at] ^= 1
        (folder / "pixels.u8").write_bytes(flipped)
        open_cache(folder, tree.classes)
        with pytest.raises(CacheError, match=r"pixels\.u8 is not as it was made; remove .*cache to make it again"):
            open_cache(folder, tree.classes, verify=True)


def shorter(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


def edited(file: Path) -> None:
    file.write_text(file.read_text().replace("cat", "dog", 1))


def removed(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("pixels.u8", shorter),
        ("pixels.u8", longer),
        ("pixels.u8", removed),
        ("index.csv", edited),
        ("index.csv", removed),
        ("chunks.txt", longer),
        ("chunks.txt", removed),
        ("plan.json", removed),
    ],
)
def test_files_that_are_not_as_they_were_made_are_named(name: str, harm: Callable[[Path], None], tree: ImageTree, folder: Path) -> None:
    make(tree, folder)
    harm(folder / name)
    for use in (lambda: open_cache(folder, tree.classes), lambda: make(tree, folder)):
        with pytest.raises(CacheError, match=f"{name} is not as it was made; remove .*cache to make it again"):
            use()
