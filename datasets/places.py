"""Make Places365's class split.

    python datasets/places.py --categories categories_places365.txt

writes `l3rs/data/classes/places25.json`, which `--split places25` then means. The first 150 classes, in the order of Places' own
index, pretrain; the other 215 are Places25Eval, meta-test. Nothing is drawn, so there is one split.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from l3rs.data.splits import ClassSplit
from l3rs.data.trees import read_list

ROOT = Path(__file__).resolve().parent.parent
PRETRAIN = 150


def places_split(categories: Path) -> ClassSplit:
    """The split: class ids such as `/b/bakery/shop`, and what they are called."""
    ids = tuple(c for c, _ in sorted(read_list(categories), key=lambda line: line[1]))
    classes = {"pretrain": ids[:PRETRAIN], "meta-train": (), "meta-validation": (), "meta-test": ids[PRETRAIN:]}
    return ClassSplit("places365", 0, classes, "places25", {i: i[3:].replace("/", ", ").replace("_", " ") for i in ids})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--categories", type=Path, required=True, help="Places' list of its classes")
    parser.add_argument("--out", type=Path, default=ROOT / "l3rs" / "data" / "classes", help="folder for the split")
    args = parser.parse_args()
    try:
        split = places_split(args.categories)
        split.write(args.out / f"{split.name}.json")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"Wrote {args.out / split.name}.json: {', '.join(f'{len(ids)} {purpose}' for purpose, ids in split.classes.items())}.")


if __name__ == "__main__":
    main()
