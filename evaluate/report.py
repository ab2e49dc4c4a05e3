"""The report: all tables and figures of the evaluation, from rows, as one HTML page that needs nothing else, and as Markdown.

    python evaluate/report.py                     # to evaluate/results/report.html, report.md and figures/
    python evaluate/report.py --rows runs/evaluation --out somewhere

Nothing is run here. What has no rows is shown as missing, and its section ends with the command that makes them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from options import RESULTS, ROOT

from l3rs.evaluation.figures import FIGURES
from l3rs.evaluation.pages import Picture, Table, as_html, as_markdown, save_pictures
from l3rs.evaluation.sources import Sources, arguments, collect
from l3rs.evaluation.tables import TABLES
from l3rs.stats import FEW

TITLE = "L3RS: the evaluation"
LEAD = (
    "L3RS is a learned schedule: a small network sets, layer by layer and step by step, how far fine-tuning moves and how it mixes the "
    "directions of SGD and Adam (arXiv 2408.09310). Here it is compared with other learned optimizers, with the paper's fixed learning "
    "rates, and with baselines whose learning rate was tuned for each length of a run, on classes that none of them has seen.\n\n"
    "Every number is made from rows of runs, by evaluate/report.py. All optimizers of a cell run the same tasks. A run that diverged "
    f"counts as 0 accuracy and an infinite loss. Intervals over tasks are the bootstrap's; where there are fewer than {FEW}, Student's. "
    "Where rows are missing it says so, and the section ends with the command that makes them. "
    "In the paper's cells, A to E, L3RS is `icons-resnet34-paper`, by the paper's protocol. With head starts, in `recipes` and `equal`, "
    "and on networks that no schedule met it is what `learned='auto'` takes today. Both were meta-trained on other classes of these images."
)
LEFT_OUT = "Figure 10"  # of the HTML page, which is to stay small
REST = "The same page in Markdown, report.md, also has Figures 10, of losses; here their numbers are in the tables."


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (default: %(default)s)")
    args = parser.parse_args()
    try:
        found = collect(Sources(ROOT, args.rows, args.cells, args.configs), (*TABLES, *FIGURES))
    except ValueError as error:
        sys.exit(str(error))
    sections = [(heading, sorted(items, key=lambda item: isinstance(item, Table))) for heading, items in found]  # pictures first
    args.out.mkdir(parents=True, exist_ok=True)
    save_pictures([item for _, items in sections for item in items if isinstance(item, Picture)], args.out / "figures")
    fewer = [(heading, [item for item in items if not item.name.startswith(LEFT_OUT)]) for heading, items in sections]
    for name, page in (("report.html", as_html(TITLE, f"{LEAD}\n\n{REST}", fewer)), ("report.md", as_markdown(TITLE, LEAD, sections))):
        (args.out / name).write_text(page)
        print(f"Wrote {os.path.relpath(args.out / name)}, {len(page) / 2**20:.2f} MiB.")


if __name__ == "__main__":
    main()
