"""Trees of image files: which are found, what their classes are, and which are for validation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import noise, write_tree
from torchvision.datasets import ImageFolder, Places365

from l3rs.data.trees import TRAIN, VALIDATION, ImageTree, TreeError, read_folder, read_labelled, read_places, read_tree

KNOWN_DRAW = ["cat/cat-000.png", "cat/cat-002.png"]  # of ten cats, with seed 0


def listed(tree: ImageTree) -> dict[str, tuple[str, bool]]:
    """File to its class and whether it is on the validation side."""
    rows = zip(tree.files, tree.labels.tolist(), tree.validation.tolist(), strict=True)
    return {file: (tree.classes[label], side) for file, label, side in rows}


def held_out(tree: ImageTree, name: str) -> list[str]:
    return [file for file, (c, side) in listed(tree).items() if c == name and side]


# Folders of classes


def test_a_folder_of_classes_has_a_fifth_of_each_for_validation(tmp_path: Path) -> None:
    tree = read_folder(write_tree(tmp_path, {"dog": 5, "cat": 10, "ant": 1}))
    assert tree.classes == ("ant", "cat", "dog")
    assert tree.counts() == {"ant": (1, 0), "cat": (8, 2), "dog": (4, 1)}
    assert tree.labels.dtype == np.int64
    assert tree.validation.dtype == bool
    assert len(tree.files) == len(set(tree.files)) == 16
    assert all((tmp_path / file).is_file() and file.split("/")[0] == c for file, (c, _) in listed(tree).items())


@pytest.mark.parametrize("train", TRAIN)
@pytest.mark.parametrize("validation", VALIDATION)
def test_sides_of_their_own_are_taken_as_they_are(train: str, validation: str, tmp_path: Path) -> None:
    write_tree(tmp_path, {f"{train}/cat": 3, f"{train}/dog": 4, f"{validation}/cat": 2, f"{validation}/dog": 1})
    tree = read_folder(tmp_path, seed=5)
    assert tree.counts() == {"cat": (3, 2), "dog": (4, 1)}
    assert all(file.startswith(f"{validation if side else train}/{c}/") for file, (c, side) in listed(tree).items())


def test_images_are_found_at_any_depth_and_with_any_case_of_their_extension(tmp_path: Path) -> None:
    write_tree(tmp_path, {"cat": 1, "cat/persian": 1, "cat/persian/white": 1})
    for name in ("a.JPG", "b.JpEg", "c.WEBP", "d.tiff", "e.bmp"):
        noise(name, 3, 3).save(tmp_path / "cat" / name)
    found = {"a.JPG", "b.JpEg", "c.WEBP", "d.tiff", "e.bmp", "cat-000.png", "persian/persian-000.png", "persian/white/white-000.png"}
    assert set(read_folder(tmp_path).files) == {f"cat/{f}" for f in found}


def test_what_is_no_image_or_hidden_is_passed_over(tmp_path: Path) -> None:
    write_tree(tmp_path, {"cat": 2, "cat/.thumbnails/small": 1, ".thumbnails": 1, "__MACOSX": 1})
    for name in ("notes.txt", "png", "cat.png.part", ".hidden.png", "._cat-000.png"):
        noise(name, 3, 3).save(tmp_path / "cat" / name, "PNG")
    noise("loose", 3, 3).save(tmp_path / "loose.png")
    assert sorted(read_folder(tmp_path).files) == ["cat/cat-000.png", "cat/cat-001.png"]


def test_classes_are_called_anything(tmp_path: Path) -> None:
    names = {"red fox": 3, "Füchse": 3, "狐 狸": 3, "a,b\"c'": 3, "nan": 3, "007": 3}
    tree = read_folder(write_tree(tmp_path, names))
    assert tree.counts() == dict.fromkeys(sorted(names), (2, 1))


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    try:
        (tmp_path / name).mkdir()
    except OSError:
        pytest.skip("this file system wants UTF-8")
    noise("x", 3, 3).save(tmp_path / name / f"{name}.png")
    assert read_folder(tmp_path).files == (f"{name}/{name}.png",)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_tree(tmp_path / "store", {"photos": 2})
    root = write_tree(tmp_path / "root", {"dog": 2})
    (root / "cat").symlink_to(tmp_path / "store" / "photos")
    (root / "dog" / "again").symlink_to(root / "dog")
    (root / "dog" / "more").symlink_to(tmp_path / "store" / "photos")
    assert read_folder(root).counts() == {"cat": (2, 0), "dog": (3, 1)}


def test_imagenet_is_read_as_it_is_unpacked(tmp_path: Path) -> None:
    for wnid in ("n01440764", "n02123045"):
        for side, stem in (("train", f"{wnid}_10026"), ("train", f"{wnid}_293"), ("val", "ILSVRC2012_val_00000293")):
            (tmp_path / side / wnid).mkdir(parents=True, exist_ok=True)
            noise(stem, 3, 3).save(tmp_path / side / wnid / f"{stem}.JPEG")
    (tmp_path / "ILSVRC2012_devkit_t12").mkdir()
    tree = read_tree("imagenet", tmp_path, classes=("n02123045",))
    assert listed(tree) == {
        "train/n02123045/n02123045_10026.JPEG": ("n02123045", False),
        "train/n02123045/n02123045_293.JPEG": ("n02123045", False),
        "val/n02123045/ILSVRC2012_val_00000293.JPEG": ("n02123045", True),
    }


def test_train_images_and_labels_are_those_of_torchvision(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train/b": 3, "train/a": 2, "train/a/deep": 2, "train/C": 1, "val/a": 1, "val/b": 1, "val/C": 1})
    noise("upper", 3, 3).save(tmp_path / "train" / "a" / "UPPER.JPEG")
    (tmp_path / "train" / "a" / "readme.txt").write_text("no image")
    tree, theirs = read_folder(tmp_path), ImageFolder(str(tmp_path / "train"))
    assert list(tree.classes) == theirs.classes
    ours = {(str(tmp_path / f), label) for f, label, side in zip(tree.files, tree.labels, tree.validation, strict=True) if not side}
    assert ours == set(theirs.samples)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        ({}, "has no class folders: it is read as root/<class>/<image>"),
        ({".hidden": 1}, "has no class folders"),
        ({"train/a": 1}, "has a folder train and none for validation: it may be called val or validation or valid"),
        ({"val/a": 1}, "has a folder val and none for training: it may be called train or training"),
        ({"train/a": 1, "val/a": 1, "val/b": 1}, "val has class 'b', which .*train lacks"),
        ({"train": 1, "val/a": 1}, "train has no class folders: it is read as train/<class>/<image>"),
        ({"train/a": 1, "val": 1}, "val has no class folders"),
    ],
)
def test_a_folder_that_cannot_be_read_says_why(folders: dict[str, int], said: str, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(TreeError, match=said):
        read_folder(write_tree(tmp_path / "root", folders))


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        for read in (read_folder, read_places):
            with pytest.raises(TreeError, match=f"{path} is not a folder"):
                read(path)
    with pytest.raises(TreeError, match="x is not a folder"):
        read_folder("x" * 300)  # which is longer than a name may be


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert read_folder(write_tree(tmp_path, {"train": 5, "bus": 5})).counts() == {"bus": (4, 1), "train": (4, 1)}


SIDES = [
    ("Training", "Testing"), ("Train", "Val"), ("TRAIN", "TEST"), ("seg_train", "seg_test"), ("train_set", "test_set"),
    ("training_set", "test_set"), ("Train", "Test"), ("train", "valid"),
]  # fmt: skip


@pytest.mark.parametrize(("train", "validation"), SIDES)
def test_sides_called_otherwise_are_sides(train: str, validation: str, tmp_path: Path) -> None:
    tree = read_folder(write_tree(tmp_path, {f"{train}/cat": 3, f"{train}/dog": 4, f"{validation}/cat": 2, f"{validation}/dog": 1}))
    assert tree.counts() == {"cat": (3, 2), "dog": (4, 1)}
    assert not tree.divided
    assert all((tmp_path / file).is_file() for file in tree.files)


def test_of_three_sides_the_test_images_are_left_alone(tmp_path: Path) -> None:
    write_tree(tmp_path, {f"{side}/{c}": 2 for side in ("train", "valid", "test") for c in ("cat", "dog")})
    assert sorted({file.split("/")[0] for file in read_folder(tmp_path).files}) == ["train", "valid"]


def test_sides_within_folders_of_their_name_are_found(tmp_path: Path) -> None:
    """As Kaggle packs them."""
    write_tree(tmp_path, {f"{s}/{s}/{c}": 2 for s in ("seg_train", "seg_test") for c in ("cat", "dog")} | {"seg_pred": 2})
    tree = read_folder(tmp_path)
    assert tree.counts() == {"cat": (2, 2), "dog": (2, 2)}
    assert tree.files[0] == "seg_train/seg_train/cat/cat-000.png"


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        ({"Training/cat": 1}, "has a folder Training and none for validation: it may be called val or"),
        ({"seg_test/cat": 1}, "has a folder seg_test and none for training: it may be called train or training"),
        ({"train_1/cat": 1, "train_2/cat": 1}, "has a folder train_1 and none for validation"),
        ({"train/cat": 1, "Train/cat": 1, "val/cat": 1}, "has both Train and train; each side, train and validation, must have one folder"),
        ({"test/cat": 1, "cat": 1}, "has a folder test and none for training"),
    ],
)
def test_halves_of_a_set_are_never_classes(folders: dict[str, int], said: str, tmp_path: Path) -> None:
    with pytest.raises(TreeError, match=said):
        read_folder(write_tree(tmp_path, folders))


def test_classes_that_are_called_like_sides_are_classes(tmp_path: Path) -> None:
    write_tree(tmp_path, {"steam_train": 5, "crash_test": 5, "bus": 5, "test": 5})
    assert read_folder(tmp_path).classes == ("bus", "crash_test", "steam_train", "test")


def test_folders_of_systems_are_no_classes(tmp_path: Path) -> None:
    write_tree(tmp_path, {"cat": 2, "dog": 2, "cat/@eaDir/x": 1, "__background__": 2, "__other": 2})
    for name in ("@eaDir", "$RECYCLE.BIN", "System Volume Information", ".Trash-1000", "__MACOSX", ".ipynb_checkpoints", "lost+found"):
        write_tree(tmp_path, {f"{name}/S-1-5": 1})
    assert read_folder(tmp_path).counts() == dict.fromkeys(("__background__", "__other", "cat", "dog"), (2, 0))


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    write_tree(tmp_path, {"cat": 2, "dog": 1})
    for name in (
        "cat/notes.txt",
        "cat/more/x.TXT",
        "dog/x.heic",
        "dog/README",
        "dog/.hidden.txt",
        "cat/@eaDir/y.txt",
        "loose.png",
        "labels.csv",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert read_folder(tmp_path).passed_over == {".txt": 2, ".heic": 1, "": 1, ".png outside the class folders": 1}
    assert read_folder(tmp_path, classes=("cat",)).passed_over == {".txt": 2, ".png outside the class folders": 1}


def test_names_are_matched_by_their_composed_form(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    write_tree(tmp_path / "sides", {f"train/{apart}": 2, "train/dog": 2, f"val/{composed}": 1, "val/dog": 1})
    tree = read_folder(tmp_path / "sides")
    assert tree.counts() == {composed: (2, 1), "dog": (2, 1)}
    assert all((tree.root / file).is_file() for file in tree.files)
    assert read_folder(tmp_path / "sides", classes=(apart,)).counts() == {composed: (2, 1)}
    write_tree(tmp_path / "both", {apart: 3, composed: 2})
    assert read_folder(tmp_path / "both").counts() == {composed: (4, 1)}


def test_folders_that_are_nested_too_deeply_are_named(tmp_path: Path) -> None:
    write_tree(tmp_path, {"cat/" + "/".join("d" * 101): 1})
    with pytest.raises(TreeError, match="cat has folders nested more than 100 deep"):
        read_folder(tmp_path)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is made up."""
    write_tree(tmp_path, {"cat": 2, "cat/closed": 2})
    scan = os.scandir

    def refuse(path: str | Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(TreeError, match=r"cat/closed cannot be read \(Permission denied\)"):
        read_folder(tmp_path)


# The draw of validation images


def test_the_draw_is_a_function_of_the_seed_and_the_class_alone(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"cat": 10, "dog": 10})
    both = read_folder(root)
    assert listed(read_folder(root)) == listed(both)
    alone = listed(read_folder(root, classes=("cat",)))
    assert alone == {file: row for file, row in listed(both).items() if row[0] == "cat"}
    write_tree(root, {"ant": 4, "bee": 7})
    assert {file: row for file, row in listed(read_folder(root)).items() if row[0] in ("cat", "dog")} == listed(both)
    assert held_out(both, "cat") != [file.replace("dog", "cat") for file in held_out(both, "dog")]
    others = [held_out(read_folder(root, seed, ("cat",)), "cat") for seed in range(8)]
    assert len({tuple(files) for files in others}) > 4


def test_the_draw_does_not_depend_on_the_order_of_the_disk(tmp_path: Path) -> None:
    there = read_folder(write_tree(tmp_path / "one", {"cat": 10}))
    for i in (3, 9, 0, 1, 7, 2, 8, 4, 6, 5):
        write_tree(tmp_path / "two", {"cat": 0})
        noise(str(i), 3, 3).save(tmp_path / "two" / "cat" / f"cat-{i:03d}.png")
    assert listed(read_folder(tmp_path / "two")) == listed(there)


def test_a_known_draw_stays_what_it_is(tmp_path: Path) -> None:
    """Splits refer to validation images by seed: what a seed means must not change."""
    assert held_out(read_folder(write_tree(tmp_path, {"cat": 10}), seed=0), "cat") == KNOWN_DRAW


def test_classes_that_are_not_there_are_left_to_the_split(tmp_path: Path) -> None:
    assert read_folder(write_tree(tmp_path, {"cat": 2}), classes=("cat", "unicorn")).classes == ("cat",)


# Places365


def write_places(root: Path, size: str = "256") -> Path:
    """Places365 of three classes with its lists and images, as torchvision unpacks them."""
    names = {"/a/airfield": 0, "/b/bakery/shop": 1, "/z/zen_garden": 2}
    train = [(f"{c}/0000000{i}.jpg", n) for c, n in names.items() for i in (1, 2)]
    held = [(f"Places365_val_0000000{i}.jpg", n) for i, n in enumerate((2, 0, 1, 1))]
    root.mkdir(exist_ok=True)
    for file, lines in (
        ("categories_places365.txt", names.items()),
        ("places365_train_standard.txt", train),
        ("places365_val.txt", held),
    ):
        (root / file).write_text("".join(f"{what} {n}\n" for what, n in lines))
    for folder, files in ((f"data_{size}_standard", train), (f"val_{size}", held)):
        for file, _ in files:
            path = root / folder / file.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(file, 3, 3).save(path)
    return root


@pytest.mark.parametrize("size", ["256", "large"])
def test_places_is_read_as_torchvision_reads_it(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_places(tmp_path, size)
    monkeypatch.setattr("torchvision.datasets.places365.check_integrity", lambda file, md5: Path(file).is_file())  # these lists are short
    tree = read_tree("places365", root)
    for split, side in (("train-standard", False), ("val", True)):
        theirs = Places365(str(root), split, small=size == "256")
        assert {c: i for i, c in enumerate(tree.classes)} == theirs.class_to_idx
        rows = zip(tree.files, tree.labels.tolist(), tree.validation, strict=True)
        assert [(str(root / file), label) for file, label, s in rows if s == side] == theirs.imgs
    assert all((root / file).is_file() for file in tree.files)


def test_some_classes_of_places(tmp_path: Path) -> None:
    tree = read_places(write_places(tmp_path), ("/z/zen_garden", "/b/bakery/shop"))
    assert tree.classes == ("/b/bakery/shop", "/z/zen_garden")
    assert tree.counts() == {"/b/bakery/shop": (2, 2), "/z/zen_garden": (2, 1)}
    assert listed(tree)["val_256/Places365_val_00000000.jpg"] == ("/z/zen_garden", True)


def test_small_images_of_places_come_first(tmp_path: Path) -> None:
    write_places(tmp_path, "large")
    assert all(file.split("/")[0] in ("data_large_standard", "val_large") for file in read_places(tmp_path).files)
    write_places(tmp_path, "256")
    assert all(file.split("/")[0] in ("data_256_standard", "val_256") for file in read_places(tmp_path).files)


def test_classes_of_places_go_by_their_numbers_not_by_their_lines(tmp_path: Path) -> None:
    before = read_places(write_places(tmp_path))
    (tmp_path / "categories_places365.txt").write_text("/z/zen_garden 2\n/a/airfield 0\n/b/bakery/shop 1\n")
    tree = read_places(tmp_path)
    assert tree.classes == before.classes == ("/a/airfield", "/b/bakery/shop", "/z/zen_garden")
    assert listed(tree) == listed(before)


@pytest.mark.parametrize("file", ["categories_places365.txt", "places365_train_standard.txt", "places365_val.txt"])
def test_lists_of_places_that_cannot_be_read_are_named(file: str, tmp_path: Path) -> None:
    root = write_places(tmp_path)
    good = (root / file).read_text()
    wrong = ("/a/airfield", "/a/airfield one", "/a/airfield 1 2", "", "/a/airfield -1", "/a/airfield \u00b2", "/a/\0 1", "/../../x 1")
    for line in (*wrong, f"/a/airfield {'9' * 5000}"):
        (root / file).write_text(f"{good}{line}\n", encoding="utf-8")
        with pytest.raises(TreeError, match=rf"{file}, line {len(good.splitlines()) + 1}: .* is not a path and a class number"):
            read_places(root)
    (root / file).unlink()
    with pytest.raises(TreeError, match=f"{file} is not there; it comes with filelist_places365-standard.tar"):
        read_places(root)


def test_a_class_number_that_places_does_not_have(tmp_path: Path) -> None:
    with (write_places(tmp_path) / "places365_val.txt").open("a") as lines:
        lines.write("Places365_val_00000009.jpg 3\n")
    with pytest.raises(TreeError, match=r"places365_val\.txt has Places365_val_00000009\.jpg of class 3"):
        read_places(tmp_path)


def test_places_without_images(tmp_path: Path) -> None:
    write_places(tmp_path)
    (tmp_path / "val_256").rename(tmp_path / "val_large")
    with pytest.raises(TreeError, match="has no val_256"):
        read_places(tmp_path)
    (tmp_path / "data_256_standard").rename(tmp_path / "elsewhere")
    with pytest.raises(TreeError, match="neither data_256_standard nor data_large_standard"):
        read_places(tmp_path)


def test_a_model_is_judged_by_a_side_that_did_not_train_it(tmp_path: Path) -> None:
    for side in ("train", "val"):
        write_tree(tmp_path / side, {"ant": 1, "bee": 1})
    with pytest.raises(TreeError, match=rf"has class 'train', .* its sides lie apart: give {tmp_path}/val$"):
        read_labelled(tmp_path, ("ant", "bee"))
    (tmp_path / "val").rename(tmp_path / "zebra")
    with pytest.raises(TreeError, match=r"such as 'ant'$"):
        read_labelled(tmp_path, ("ant", "bee"))
