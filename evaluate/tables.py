"""From the rows of `evaluate/run.py` to the paper's Tables 5 to 16, and to paired differences; nothing is run here.

    python evaluate/tables.py                     # every cell of configs/evaluate, to evaluate/results/tables.md
    python evaluate/tables.py --cells A D

A table says mean and standard deviation over the tasks, a dash where runs are missing, a star where some are, and the command that makes
them. A run that diverged counts as 0 accuracy, and as an infinite loss.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from run import RESULTS, read_config

from l3rs.evaluation import EvaluationConfig, Rows
from l3rs.tables import MEASURES, as_markdown, differences, missing_arms, outcomes, summarize

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "evaluate"


def section(file: Path, config: EvaluationConfig, rows: Rows, reference: str) -> str:
    """The tables of a cell as Markdown."""
    first = file.read_text().splitlines()[0]
    parts = [f"## {config.cell}: {first[first.index('(') + 1 : first.rindex(')')]}"]
    there = rows.read()
    for measure in MEASURES:
        table = outcomes(there, config, measure)
        parts.append(f"### {measure.capitalize()}\n\n{as_markdown(config, measure, summarize(table))}")
        if measure == "accuracy":
            lines = [f"| {reference} minus | steps | points | 95% interval | better on | tasks |", "|---|---|---|---|---|---|"]
            for (arm, horizon), d in sorted(differences(table, measure, reference).items(), key=lambda item: (item[0][1], -item[1].mean)):
                numbers = f"{100 * d.mean:+.1f} | {100 * d.low:+.1f} to {100 * d.high:+.1f} | {d.probability:.0%} | {d.tasks}"
                lines.append(f"| {arm} | {horizon} | {numbers} |")
            if len(lines) > 2:
                parts.append("\n".join(lines))
            lacking = missing_arms(config, table)
    if lacking:
        names = " ".join(map(shlex.quote, lacking))
        parts.append(f"Runs are missing:\n\n```\npython evaluate/run.py --config configs/evaluate/{file.name} --arms {names}\n```")
    return "\n\n".join(parts)


def main() -> None:
    cells = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=cells, choices=cells, help="some of them (default: all)")
    parser.add_argument(
        "--rows", type=Path, default=Path("runs/evaluation"), help="folder of rows, beside evaluate/results (default: %(default)s)"
    )
    parser.add_argument("--reference", default="L3RS", help="arm that the others are compared with, in pairs (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "tables.md", help="file to write (default: %(default)s)")
    args = parser.parse_args()
    sections = []
    for cell in args.cells:
        file = CONFIGS / f"{cell}.yaml"
        config = read_config(file)
        sections.append(section(file, config, Rows(args.rows / config.cell, RESULTS / config.cell), args.reference))
    head = "# Tables\n\nMade by `python evaluate/tables.py` from the rows in `evaluate/results`. In brackets: tuned learning rates."
    args.out.write_text("\n\n".join([head, *sections]) + "\n")
    print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
