"""From rows to figures: the paper's, and performance profiles; nothing is run here.

    python evaluate/figures.py                    # all of them, to evaluate/results/figures
    python evaluate/figures.py --cells A
    python evaluate/figures.py --only Overview "Figure 3F, A" --out docs/pictures

Figures 3 and 10 are of the rows of `evaluate/run.py`, Figures 4, 5, 8 and 9 of those of `evaluate/decisions.py`, Figure 6 of the curves
that are shipped beside the checkpoints. A figure without rows is named, with the command that makes them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from options import RESULTS, ROOT

from l3rs.evaluation.figures import FIGURES
from l3rs.evaluation.pages import save_pictures
from l3rs.evaluation.sources import Sources, arguments, collect


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "figures", help="folder to write to (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of them, such as 'Figure 3A'")
    args = parser.parse_args()
    try:
        pictures = [item for _, items in collect(Sources(ROOT, args.rows, args.cells, args.configs), FIGURES) for item in items]
    except ValueError as error:
        sys.exit(str(error))
    unknown = sorted(set(args.only or ()) - {picture.name for picture in pictures})
    if unknown:
        parser.error(f"--only names {unknown[0]!r}; there are {', '.join(picture.name for picture in pictures)}")
    pictures = [picture for picture in pictures if not args.only or picture.name in args.only]
    written = save_pictures(pictures, args.out)
    for picture in pictures:
        if picture.figure is None:
            print(f"{picture.name} has no rows yet: " + "; ".join(picture.commands))
    print(
        f"Wrote {len(written)} figures to {args.out}, the largest of {max((f.stat().st_size for f in written), default=0) / 1024:.0f} KiB."
    )


if __name__ == "__main__":
    main()
