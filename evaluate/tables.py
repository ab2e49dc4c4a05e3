"""From rows to tables: the paper's Tables 1 to 16 and what goes beyond them; nothing is run here.

    python evaluate/tables.py                     # all of them, to evaluate/results/tables.md
    python evaluate/tables.py --cells A D         # of the cells, only these
    python evaluate/tables.py --configs configs/evaluate/imagenet --out imagenet.md    # of the cells in another folder
    python evaluate/tables.py --fill README.md docs/findings.md    # those between comments in these pages, and no other

Rows are those of `evaluate/results`, and of `--rows` beside them. Where there is no row a table says `missing`, and its section ends
with the command that makes it. A run that diverged counts as 0 accuracy, and as an infinite loss.
"""

from __future__ import annotations

import sys
from pathlib import Path

from options import RESULTS, ROOT

from l3rs.evaluation.pages import as_markdown, fill
from l3rs.evaluation.sources import Sources, arguments, collect
from l3rs.evaluation.tables import TABLES
from l3rs.text import first_line


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "tables.md", help="file to write (default: %(default)s)")
    parser.add_argument("--fill", nargs="+", type=Path, default=(), metavar="PAGE", help="pages of Markdown with tables to write anew")
    args = parser.parse_args()
    try:
        sections = collect(Sources(ROOT, args.rows, args.cells, args.configs), TABLES)
    except ValueError as error:
        sys.exit(str(error))
    for page in args.fill:
        try:
            page.write_text(fill(page.read_text(), (table for _, tables in sections for table in tables)))
        except (OSError, ValueError) as error:
            sys.exit(f"{page}: {first_line(error)}")
        print(f"Wrote the tables of {page}.")
    if args.fill:
        return
    lead = "Made by `python evaluate/tables.py` from the rows in `evaluate/results`."
    try:
        args.out.write_text(as_markdown("Tables", lead, sections))
    except OSError as error:
        sys.exit(f"--out must be a file that can be written (got {args.out}: {error.strerror})")
    print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
