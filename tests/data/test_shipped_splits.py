"""The committed class lists of ImageNet and Places."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from l3rs.data.splits import SHIPPED_SPLITS, ClassSplit

ROOT = Path(__file__).parent.parent.parent
PLACES_MD5 = "06c963b85866bd0649f97cb43dd16673"  # of categories_places365.txt, as torchvision.datasets.Places365 checks it


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_imagenet(seed: int) -> None:
    split = ClassSplit.find(f"imagenet25-{seed}")
    info = ImageNetInfo("imagenet-1k")
    ids = [info.index_to_label_name(i) for i in range(1000)]
    assert ids == sorted(ids)
    assert list(split.classes["pretrain"]) == ids[:500]
    sizes = {purpose: len(classes) for purpose, classes in split.classes.items()}
    assert sizes == {"pretrain": 500, "meta-train": 200, "meta-validation": 50, "meta-test": 250}
    assert sorted(c for classes in split.classes.values() for c in classes) == ids
    assert split.names["n01440764"] == "tench"


def test_seeds_draw_other_classes() -> None:
    drawn = {ClassSplit.find(f"imagenet25-{seed}").classes["meta-test"] for seed in range(3)}
    assert len(drawn) == 3


def test_places() -> None:
    """Every class of Places365 in the order of its index: the list that is left has the checksum of the original."""
    split = ClassSplit.find("places25")
    ids = [*split.classes["pretrain"], *split.classes["meta-test"]]
    assert len(split.classes["pretrain"]) == 150
    assert not split.classes["meta-train"]
    assert not split.classes["meta-validation"]
    original = "\n".join(f"{c} {i}" for i, c in enumerate(ids))
    assert hashlib.md5(original.encode()).hexdigest() == PLACES_MD5
    assert split.names["/b/bakery/shop"] == "bakery, shop"


def test_the_scripts_write_what_is_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "datasets"))
    import cifar10
    import imagenet
    import places

    shipped = ClassSplit.find("places25")
    ids = [*shipped.classes["pretrain"], *shipped.classes["meta-test"]]
    categories = tmp_path / "categories_places365.txt"
    categories.write_text("\n".join(f"{c} {i}" for i, c in enumerate(ids)))
    splits = (*map(imagenet.imagenet_split, range(3)), places.places_split(categories), cifar10.cifar10_split())
    made = {split.name: split for split in splits}
    assert set(made) == set(SHIPPED_SPLITS)
    for name, split in made.items():
        split.write(tmp_path / f"{name}.json")
        assert (tmp_path / f"{name}.json").read_bytes() == (ROOT / "l3rs" / "data" / "classes" / f"{name}.json").read_bytes()


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="imagenet25-7 is neither a file nor one of imagenet25-0"):
        ClassSplit.find("imagenet25-7")
