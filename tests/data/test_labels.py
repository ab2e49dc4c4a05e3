"""Tables of labels: both forms, and what is said of those that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_tree

from l3rs.data.labels import read_labels
from l3rs.data.trees import TreeError

ROWS = ["x/x-000.png", "x/x-001.png", "x/x-002.png", "x/x-003.png"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("labels"), {"x": 4})


def table(root: Path, *lines: str) -> Path:
    (root / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return root / "labels.csv"


def test_both_forms_say_the_same(root: Path) -> None:
    named = read_labels(
        table(root, "file,labels,side", f"{ROWS[0]},red; old,train", f"{ROWS[1]},old,train", f"{ROWS[2]},, val", f"{ROWS[3]},red,val"), root
    )
    dense = read_labels(
        table(root, "file,red,old,side", f"{ROWS[0]},1,1,train", f"{ROWS[1]},0,1,train", f"{ROWS[2]},0,0,val", f"{ROWS[3]},1,0,val"), root
    )
    for tree in (named, dense):
        assert tree.classes == ("old", "red")
        assert tree.labels.tolist() == [[1, 1], [1, 0], [0, 0], [0, 1]]
        assert tree.validation.tolist() == [False, False, True, True]
        assert tree.counts() == {"old": (2, 0), "red": (1, 1)}


def test_without_a_side_the_seed_draws_and_a_model_has_its_own_classes(root: Path) -> None:
    lines = table(root, "file,labels", *(f"{row},a;b" for row in ROWS))
    assert read_labels(lines, root, 0, 0.25).validation.sum() == 1
    judged = read_labels(lines, root, classes=("b", "c", "a"))
    assert judged.labels.tolist() == [[1, 0, 1]] * 4
    assert judged.validation.all()
    assert judged.labels.dtype == np.float32


def test_each_class_keeps_an_image_to_train_on(root: Path) -> None:
    lines = table(root, "file,labels", f"{ROWS[0]},a;rare", *(f"{row},a" for row in ROWS[1:]))
    trees = [read_labels(lines, root, seed, 0.5) for seed in range(20)]
    assert all(tree.counts()["rare"] == (1, 0) for tree in trees)
    assert all(0 < tree.validation.sum() <= 2 for tree in trees)
    assert len({tuple(tree.validation) for tree in trees}) > 2


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["file,labels"], "must have a column of files, one or more of labels, and a row an image"),
        (["file,labels", "x/none.png,a"], "line 2: 'x/none.png' is no file in"),
        (["file,labels", "../x,a"], r"line 2: '\.\./x' is no file in"),
        (["file,labels", ROWS[0]], "line 2: 1 cells, and the first line has 2"),
        (["file,a,b", f"{ROWS[0]},1,2"], "line 2: a column of a class must have 0 or 1"),
        (["file,labels,side", f"{ROWS[0]},a,left"], "line 2: side must be train or val"),
        (["file,labels", f"{ROWS[0]},a", "", f"{ROWS[1]},b", "x/none.png,a"], "line 5: 'x/none.png' is no file in"),  # blank lines count
        (["file,labels", f"{ROWS[0]},a", f"{ROWS[1]},a", f"./{ROWS[0]},b"], r"line 4: '\./x/x-000.png' is in line 2 already"),
        (["file,labels,side", f"{ROWS[0]},a,train"], "have no images to validate"),
        (["file,red,red,round", f"{ROWS[0]},1,0,1"], "have two columns called 'red'"),
        (["file,labels,side", f"{ROWS[0]},a,train", f"{ROWS[1]},b,val"], "have no training image of 'b'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(lines: list[str], said: str, root: Path) -> None:
    with pytest.raises(TreeError, match=said):
        read_labels(table(root, *lines), root)


def test_a_class_of_a_column_without_an_image_is_named(root: Path) -> None:
    lines = [f"{row},{i % 2},{(i + 1) % 2},0" for i, row in enumerate(ROWS)]
    with pytest.raises(TreeError, match="have no training image of 'blue'"):
        read_labels(table(root, "file,red,round,blue", *lines), root)


def test_a_model_is_judged_by_the_validation_images_where_there_is_a_side(root: Path) -> None:
    lines = [f"{row},a,{'val' if i == 2 else 'train'}" for i, row in enumerate(ROWS)]
    assert read_labels(table(root, "file,labels,side", *lines), root, classes=("a",)).validation.tolist() == [False, False, True, False]


def test_labels_that_a_model_does_not_know(root: Path) -> None:
    with pytest.raises(TreeError, match="have 'a', which is none of the 2 classes, such as 'b'"):
        read_labels(table(root, "file,labels", f"{ROWS[0]},a"), root, classes=("b", "c"))
