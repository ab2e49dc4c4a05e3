"""Class splits: read, written, drawn and checked."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l3rs.data.splits import PURPOSES, SHIPPED_SPLITS, ClassSplit, draw
from l3rs.finetuning.splitting import SHARES

NONE: dict[str, tuple[str, ...]] = dict.fromkeys(PURPOSES, ())
ANIMALS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")
KNOWN_DRAW = NONE | {"meta-train": ("cat", "eel", "gnu", "hen"), "meta-test": ("dog", "fox", "jay")}  # four and three of them, with seed 0


def split(**changes: object) -> ClassSplit:
    classes = NONE | {"meta-train": ("n01", "n02"), "meta-test": ("n03",)}
    return ClassSplit(**({"dataset": "folder", "seed": 3, "classes": classes} | changes))  # type: ignore[arg-type]


# Files


@pytest.mark.parametrize("names", [{}, {"n01": "red fox", "n03": "狐"}])
def test_a_split_is_read_as_it_was_written(names: dict[str, str], tmp_path: Path) -> None:
    before = split(name="mine", names=names)
    before.write(tmp_path / "split.json")
    assert ClassSplit.read(tmp_path / "split.json") == before
    text = (tmp_path / "split.json").read_text(encoding="utf-8")
    assert ("狐" in text) == bool(names)  # people read it
    raw = json.loads(text)
    assert raw["meta-train"] == ({"n01": "red fox", "n02": "n02"} if names else ["n01", "n02"])


def test_a_split_without_a_name_has_that_of_its_data_set(tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(json.dumps({"dataset": "imagenet", "seed": 0, **NONE}))
    assert ClassSplit.read(tmp_path / "split.json").name == "imagenet"


def test_every_shipped_split_can_be_found() -> None:
    sizes = {"places25": 365, "cifar10": 10}
    for name in SHIPPED_SPLITS:
        found = ClassSplit.find(name)
        assert found.name == name
        assert bool(found.names) == (name != "cifar10")  # whose ids are what people call the classes
        assert sum(map(len, found.classes.values())) == sizes.get(name, 1000)


def test_a_split_is_found_by_its_file(tmp_path: Path) -> None:
    split().write(tmp_path / "split.json")
    assert ClassSplit.find(tmp_path / "split.json") == ClassSplit.find(str(tmp_path / "split.json")) == split()
    with pytest.raises(ValueError, match=r"the split xxx.* is neither"):
        ClassSplit.find("x" * 300)  # which is longer than a name may be
    with pytest.raises(ValueError, match=r"the split imagenet25-9 is neither a file nor one of imagenet25-0, .*, places25"):
        ClassSplit.find("imagenet25-9")


GOOD = {"dataset": "folder", "seed": 0, **{p: [] for p in PURPOSES}}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[1, 2]", "it holds a list, not an object"),
        ({"dataset": "x", "seed": 0, "pretrain": []}, "the split x has the purposes pretrain; it needs pretrain, meta-train, "),
        (GOOD | {"metatrain": []}, "no field is called 'metatrain'; there are dataset, seed, name, pretrain, meta-train"),
        ({k: v for k, v in GOOD.items() if k != "seed"}, "it has no 'seed'"),
        ({k: v for k, v in GOOD.items() if k != "dataset"}, "it has no 'dataset'"),
        (GOOD | {"pretrain": ["a"], "meta-test": ["b", "a"]}, "class 'a' of folder is in both pretrain and meta-test"),
        (GOOD | {"pretrain": ["a", "a"]}, "class 'a' of folder is in both pretrain and pretrain"),
        (GOOD | {"pretrain": "ab"}, "pretrain is neither a list of class ids nor a mapping of ids to names"),
        (GOOD | {"pretrain": None}, "pretrain is neither"),
        (GOOD | {"meta-train": [1, 2]}, "meta-train is neither"),
        (GOOD | {"meta-train": {"n01": 5}}, "meta-train is neither"),
        (GOOD | {"seed": "zero"}, "seed must be a whole number (got 'zero')"),
        (GOOD | {"seed": 1.5}, "seed must be a whole number (got 1.5)"),
        (GOOD | {"seed": True}, "seed must be a whole number (got True)"),
        (GOOD | {"seed": float("inf")}, "seed must be a whole number (got inf)"),
        (GOOD | {"seed": -1}, "the seed of the split folder must be at least 0 (got -1)"),
        (GOOD | {"dataset": None}, "dataset must be a string (got None)"),
        (GOOD | {"name": 7}, "name must be a string (got 7)"),
        (GOOD | {"name": "../mine"}, "must have no slash, since files are called after it (got '../mine')"),
    ],
)
def test_a_file_that_is_no_split_is_named_and_says_why(raw: object, said: str, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(raw if isinstance(raw, str) else json.dumps(raw))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is no class split: .*{re.escape(said)}"):
        ClassSplit.read(path)


@pytest.mark.parametrize("name", [".", "..", "a\0b", "\x1b[2J", "\ud83d", "x" * 300, "two\nlines"])
def test_a_split_is_called_as_files_can_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(json.dumps(GOOD | {"name": name}))
    with pytest.raises(ValueError, match=r"split\.json is no class split: the name of the split must (be one|have at most)"):
        ClassSplit.read(tmp_path / "split.json")


@pytest.mark.parametrize("name", ["a\0b", "\ud83d", "x" * 300, "狐" * 90, ""])
def test_classes_are_called_as_folders_can_be(name: str, tmp_path: Path) -> None:
    for classes in ([name], {name: "fox"}):
        (tmp_path / "split.json").write_text(json.dumps(GOOD | {"meta-test": classes}))
        with pytest.raises(
            ValueError, match=r"split\.json is no class split: a class of meta-test must (be a name|have at most 255 bytes)"
        ):
            ClassSplit.read(tmp_path / "split.json")


def test_classes_are_kept_in_their_composed_form(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    (tmp_path / "split.json").write_text(json.dumps(GOOD | {"meta-test": {apart: "a bar"}}))
    found = ClassSplit.read(tmp_path / "split.json")
    assert (found.classes["meta-test"], found.names) == ((composed,), {composed: "a bar"})
    assert draw((composed, "tea"), {"meta-test": (apart,)}, 0)["meta-test"] == (composed,)
    with pytest.raises(ValueError, match=r"classes 'caf\\xe9' and 'cafe\\u0301' of folder differ only in their Unicode form"):
        split(classes=NONE | {"meta-train": (composed, apart)})


def test_classes_need_not_be_utf8(tmp_path: Path) -> None:
    before = split(classes=NONE | {"meta-train": (os.fsdecode(b"caf\xe9"), "狐")})
    before.write(tmp_path / "split.json")
    assert ClassSplit.read(tmp_path / "split.json") == before
    assert "狐" in (tmp_path / "split.json").read_text(encoding="utf-8")


def test_a_named_pipe_is_no_split(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "split.json")
    with pytest.raises(ValueError, match=r"split\.json is no class split: it is no file, but a named pipe"):
        ClassSplit.find(tmp_path / "split.json")


def test_what_is_no_text_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no\.json is no class split: No such file"):
        ClassSplit.read(tmp_path / "no.json")
    with pytest.raises(ValueError, match="is no class split: Is a directory"):
        ClassSplit.read(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match=r"binary\.json is no class split: .*utf-8"):
        ClassSplit.read(tmp_path / "binary.json")


def test_a_name_of_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="the split folder names class 'n09', which serves no purpose in it"):
        split(names={"n01": "fox", "n09": "hen"})


def test_classes_that_are_missing_are_named() -> None:
    split().check(("n03", "n02", "n01", "more"), "the folder x")
    with pytest.raises(ValueError, match=r"^the folder x lacks 2 classes of the split folder: n01, n03$"):
        split().check(["n02"], "the folder x")
    with pytest.raises(ValueError, match=r"lacks 10 classes of the split folder: ant, bee, cat, dog, eel and 5 more$"):
        split(classes=NONE | {"pretrain": ANIMALS}).check((), "it")


# Draws


def test_shares_counts_and_lists_go_together() -> None:
    drawn = draw(ANIMALS, {"meta-train": 0.4, "meta-test": 2, "pretrain": ("jay", "cat")}, seed=1)
    assert drawn["pretrain"] == ("cat", "jay")
    assert {p: len(ids) for p, ids in drawn.items()} == {"pretrain": 2, "meta-train": 4, "meta-validation": 0, "meta-test": 2}


def test_one_is_a_number_of_classes_and_less_is_a_share() -> None:
    assert len(draw(ANIMALS, {"pretrain": 1}, 0)["pretrain"]) == 1
    assert len(draw(ANIMALS, {"pretrain": 1.0}, 0)["pretrain"]) == 1
    assert len(draw(ANIMALS, {"pretrain": 0.9}, 0)["pretrain"]) == 9
    assert len(draw(ANIMALS, {"pretrain": 0.0}, 0)["pretrain"]) == 0


def test_a_draw_is_a_function_of_its_seed() -> None:
    wanted = {"meta-train": 0.5, "meta-test": 0.3}
    assert draw(ANIMALS, wanted, 4) == draw(ANIMALS, wanted, 4) == draw(ANIMALS, dict(reversed(wanted.items())), 4)
    assert len({draw(ANIMALS, wanted, seed)["meta-train"] for seed in range(20)}) > 10


def test_a_known_draw_stays_what_it_is() -> None:
    """What is published as drawn by a seed must be what the seed gives."""
    assert draw(ANIMALS, {"meta-train": 4, "meta-test": 3}, 0) == KNOWN_DRAW
    for name in SHIPPED_SPLITS[:3]:
        found = ClassSplit.find(name)
        ids = sorted(c for classes in found.classes.values() for c in classes)
        sizes = {p: len(found.classes[p]) for p in PURPOSES[1:]}
        assert draw(ids, {"pretrain": ids[:500], **sizes}, found.seed) == found.classes


def test_the_default_shares_divide_any_number_of_classes() -> None:
    for number in (*range(1, 130), 500, 1000):
        sizes = {p: len(ids) for p, ids in draw([str(i) for i in range(number)], SHARES, 0).items()}
        assert sum(sizes.values()) == number
        assert all(abs(sizes[p] - share * number) < 0.99 for p, share in SHARES.items()), sizes


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"metatrain": 0.5}, "no purpose is called 'metatrain'; there are pretrain, meta-train"),
        ({"meta-train": 8, "meta-test": 3}, "8 for meta-train, 3 for meta-test: that is 11 classes, and there are 10 to draw from"),
        ({"meta-train": 0.6, "meta-test": 0.6}, "6 for meta-train, 6 for meta-test: that is 12 classes"),
        ({"meta-train": 9, "pretrain": ("cat", "dog")}, "9 for meta-train: that is 9 classes, and there are 8 to draw from"),
        ({"pretrain": ("cat",), "meta-test": ("dog", "cat")}, "class 'cat' is asked for twice, by pretrain and by meta-test"),
        ({"pretrain": ("cat", "cat")}, "class 'cat' is asked for twice, by pretrain and by pretrain"),
        ({"pretrain": ("unicorn",)}, "pretrain asks for class 'unicorn', which is not there; of 10, some are ['ant', 'bee', 'cat']"),
        ({"pretrain": -0.5}, "pretrain must be a share between 0 and 1, a number of classes, or a list of them (got -0.5)"),
        ({"pretrain": 2.5}, "or a list of them (got 2.5)"),
        ({"pretrain": float("nan")}, "or a list of them (got nan)"),
        ({"pretrain": float("inf")}, "or a list of them (got inf)"),
    ],
)
def test_a_draw_that_cannot_be_says_why(wanted: dict[str, float | tuple[str, ...]], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        draw(ANIMALS, wanted, 0)


def test_no_class_of_none() -> None:
    with pytest.raises(ValueError, match="asks for class 'cat', which is not there; of 0"):
        draw((), {"pretrain": ("cat",)}, 0)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), ids=st.lists(st.text(max_size=3), unique=True, max_size=30), seed=st.integers(0, 2**63))
def test_any_draw_is_disjoint_of_the_right_sizes_and_in_order(data: st.DataObject, ids: list[str], seed: int) -> None:
    listed = data.draw(st.lists(st.sampled_from(ids), unique=True)) if ids else []
    left = len(ids) - len(listed)
    count = data.draw(st.integers(2, left)) if left >= 2 else 0
    share = data.draw(st.floats(0, (left - count) / (len(ids) + 1)))
    drawn = draw(ids, {"meta-test": listed, "pretrain": count, "meta-validation": share}, seed)
    assert set(drawn["meta-test"]) == set(listed)
    assert len(drawn["pretrain"]) == count
    assert abs(len(drawn["meta-validation"]) - share * len(ids)) <= 0.5
    assert drawn["meta-train"] == ()
    every = [c for classes in drawn.values() for c in classes]
    assert len(every) == len(set(every))
    assert all(list(classes) == [c for c in ids if c in classes] for classes in drawn.values())
    ClassSplit("x", seed, drawn)
