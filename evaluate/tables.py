"""From rows to tables: the paper's Tables 1 to 16 and what goes beyond them; nothing is run here.

    python evaluate/tables.py                     # all of them, to evaluate/results/tables.md
    python evaluate/tables.py --cells A D         # of the cells, only these
    python evaluate/tables.py --configs configs/evaluate/imagenet --out imagenet.md    # of the cells in another folder

Rows are those of `evaluate/results`, and of `--rows` beside them. Where there is no row a table says `missing`, and its section ends
with the command that makes it. A run that diverged counts as 0 accuracy, and as an infinite loss.
"""

from __future__ import annotations

import sys
from pathlib import Path

from run import RESULTS, ROOT

from l3rs.evaluation.pages import as_markdown
from l3rs.evaluation.sources import Sources, arguments, collect
from l3rs.evaluation.tables import TABLES


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "tables.md", help="file to write (default: %(default)s)")
    args = parser.parse_args()
    try:
        sources = Sources(ROOT, args.rows, args.cells, args.configs)
    except ValueError as error:
        sys.exit(str(error))
    lead = "Made by `python evaluate/tables.py` from the rows in `evaluate/results`."
    args.out.write_text(as_markdown("Tables", lead, collect(sources, TABLES)))
    print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
