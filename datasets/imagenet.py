"""Draw ImageNet's class split.

    python datasets/imagenet.py --seed 0

writes `l3rs/data/classes/imagenet25-0.json`, which `--split imagenet25-0` then means. The first 500 classes pretrain; "first" is in the
order of the sorted WordNet ids, which is also that of the challenge's labels 0 to 999 in torchvision and timm. The other 500 are
divided at random, by seed, into 200 meta-train and 50 meta-validation classes, together ImageNet25, and 250 meta-test classes,
ImageNet25Eval.
"""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (first: it mends `import torchvision`, which timm does, beside a CPU-only torch)

import argparse
from pathlib import Path

from timm.data import ImageNetInfo

from l3rs.data.splits import ClassSplit, draw

ROOT = Path(__file__).resolve().parent.parent
PRETRAIN, SIZES = 500, {"meta-train": 200, "meta-validation": 50, "meta-test": 250}


def imagenet_split(seed: int) -> ClassSplit:
    """The split of this seed: WordNet ids, and what they are called."""
    info = ImageNetInfo("imagenet-1k")
    ids = sorted(info.index_to_label_name(i) for i in range(info.num_classes()))
    names = {i: info.label_name_to_description(i).split(",")[0] for i in ids}
    return ClassSplit("imagenet", seed, draw(ids, {"pretrain": ids[:PRETRAIN], **SIZES}, seed), f"imagenet25-{seed}", names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--out", type=Path, default=ROOT / "l3rs" / "data" / "classes", help="folder for the split")
    args = parser.parse_args()
    try:
        split = imagenet_split(args.seed)
        split.write(args.out / f"{split.name}.json")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"Wrote {args.out / split.name}.json: {', '.join(f'{len(ids)} {purpose}' for purpose, ids in split.classes.items())}.")


if __name__ == "__main__":
    main()
