"""Tune the baselines' learning rates on meta-train tasks, per horizon.

    python evaluate/tune.py
    python evaluate/tune.py --names schedule-free muon-cosine --steps 10 25 50 100
    python evaluate/tune.py --head start --steps 10 25 50 100    # runs begin with a head in closed form, and end with refreshed statistics
    python evaluate/tune.py --names celo2-base --learned icons-celo2-base --steps 10 25 50 100    # Celo2 needs one too

appends one row a run to `evaluate/results/tuning.csv` and writes the chosen values to `l3rs/finetuning/baselines.yaml`, those
of Icons25, which are shipped; with `--head start`, to files of their own, `tuning-start.csv` and `baselines-start.yaml`. For another
network or other images,

    python evaluate/tune.py --config configs/evaluate/imagenet/A.yaml --device cuda

tunes the arms of that cell that have no `lr`, on its workload, and writes to the file that it names as `rates`, and the rows beside it. The
grid has factors of about 3 (1, 3, 10, ...), starts around the last horizon's best value, and is extended until the best is not at its
edge. Rows that are there already are not run again, so a killed run goes on where it was. Those of other images, tasks or settings do not
count; those of the same network, pretrained anew, do. Rates that were chosen for other images or tasks are not mixed with new ones.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from options import RESULTS, ROOT, count, device

from l3rs.evaluation.cells import EvaluationConfig, made_with
from l3rs.evaluation.sources import chosen, read_cells
from l3rs.evaluation.tuning import HORIZONS, START, TRIED, Tuning, tuned_arms
from l3rs.finetuning.arms import Arm
from l3rs.finetuning.baselines import BASELINES, SHIPPED
from l3rs.finetuning.runs import Run
from l3rs.finetuning.tasks import HEADS
from l3rs.processes import cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tasks", type=count, default=8, help="meta-train tasks for a value (seeds 0, 1, ...), or more if there are rows of more"
    )
    parser.add_argument("--workers", type=count, default=cores(), help="processes of one thread each")
    parser.add_argument("--config", type=Path, help="a cell whose workload is tuned for (default: the shipped network on Icons)")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="some of those that a config with a zoo has (default: all)")
    parser.add_argument("--data", help="the images' folder, for the one that the config names; for splits that are not embedded")
    parser.add_argument("--names", nargs="+", choices=list(START), help="which to tune (default: the cell's, or all baselines)")
    parser.add_argument("--steps", type=count, nargs="+", help="for which horizons (default: the cell's, or 10 to 100)")
    parser.add_argument("--head", choices=HEADS, default="random", help="what runs begin with, without --config (default: %(default)s)")
    parser.add_argument("--learned", default="auto", help="Celo2's weights: a file, or icons-celo2-base")
    parser.add_argument("--device", type=device, default="cpu", help="where runs are made (default: %(default)s)")
    parser.add_argument("--plan", action="store_true", help="only say what there is to do")
    args = parser.parse_args()
    if args.config and args.head != "random":
        parser.error(f"--head is for the shipped rates; the arms of {args.config} say what their runs begin with (got {args.head})")
    try:
        if args.config is None:
            begun = {"head": args.head, "refresh": args.head == "start"}
            arms = [Arm(name, name, learned=args.learned, **begun) for name in args.names or BASELINES]
            model = Run("tune", arms[0], 1, 0, "meta-train", device=args.device)
            tune(arms, HORIZONS, model, ROOT / "l3rs" / "finetuning" / SHIPPED[args.head], RESULTS / TRIED[args.head], args)
        else:
            for cell in chosen(read_cells(args.config, args.data), args.networks):
                if "{network}" in args.config.read_text() and not cell.workload.class_split.classes["meta-train"]:
                    print(f"left out: {cell.cell}, whose split has no meta-train classes; it takes {cell.rates}")
                else:
                    tune_cell(cell, args)
    except ValueError as error:
        parser.error(str(error))
    except RuntimeError as error:
        sys.exit(str(error))


def tune_cell(cell: EvaluationConfig, args: argparse.Namespace) -> None:
    """Tunes for the workload of a cell. Raises ValueError if that cannot be."""
    arms, file = tuned_arms(cell), Path(str(cell.rates))
    if args.names:
        arms = [replace(arms[0], name=name, optimizer=name, learned=args.learned) for name in args.names]
    if not args.plan:
        cell.prepare("meta-train")
    model = Run("tune", arms[0], 1, 0, "meta-train", workload=cell.workload, task=cell.task, device=args.device)
    tune(arms, cell.horizons, model, file, file.with_suffix(".csv"), args)


def tune(arms: Sequence[Arm], horizons: Collection[int], model: Run, file: Path, results: Path, args: argparse.Namespace) -> None:
    """Tunes arms at some lengths of a run, and writes the rates to `file` and the rows to `results`."""
    steps = sorted(args.steps or horizons)
    if args.plan:
        names, lengths = ", ".join(arm.optimizer for arm in arms), ", ".join(map(str, steps))
        print(f"{file}: {names}; runs of {lengths} steps; {args.tasks} tasks for each learning rate of a grid that ends around the best")
        return
    results.parent.mkdir(parents=True, exist_ok=True)
    mark = f"# Tuned with: {made_with(replace(model, arm=arms[0])).partition('-')[0]}, head {arms[0].head}"
    before = [line for line in file.read_text().splitlines() if line.startswith("# Tuned with: ")] if file.exists() else []
    if before and before[0] != mark:
        raise ValueError(f"{file} was tuned with other images, tasks or heads; remove it and {results}, or give the cell another file")
    lead = (
        "".join(f"{line}\n" for line in commands(file))
        + "# Horizon: the learning rate with the best mean accuracy on the meta-train tasks of the last of these commands that tuned it. "
        f"All rows: {results.relative_to(ROOT) if results.is_relative_to(ROOT) else results}\n"
        f"{mark}\n"
    )
    Tuning(results, args.tasks, args.workers, steps, model).tune(arms, file, lead)


def commands(file: Path) -> list[str]:
    """The commands that made a file of rates, each as a comment, this one last."""
    now = f"# {shlex.join(['python', 'evaluate/tune.py', *sys.argv[1:]])}"
    there = file.read_text().splitlines() if file.exists() else []
    return [*(line for line in there if line.startswith("# python evaluate/tune.py") and line != now), now]


if __name__ == "__main__":
    main()
