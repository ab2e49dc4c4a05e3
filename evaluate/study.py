"""Run a study: meta-train settings at the same cost, and run the start and the end of each on the same tasks, as rows.

    python evaluate/study.py --config configs/ablations.yaml      # the paper's Tables 2 to 4, and other optimizers as base directions
    python evaluate/study.py --config configs/meta_study.yaml     # what matters most in meta-training: noise, learning rate, population
    python evaluate/study.py --config configs/search_study.yaml   # gradients or evolution; the start of runs, their statistics and lengths

One row a run is appended to the file that the config names. What is there already is not made again, and a meta-training that was stopped
goes on where it was. Variants of the paper's tables that are one and the same are made once.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentError
from options import ROOT, count

from l3rs.evaluation.study import Study, measure, mix, register_celo2
from l3rs.text import first_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="the study, such as configs/ablations.yaml")
    parser.add_argument("--only", nargs="+", metavar="SETTING", help="some settings by name (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", help="of meta-training (default: those of the study)")
    parser.add_argument("--tasks", type=count, help="tasks that each setting is measured on (default: as the study has)")
    parser.add_argument("--runs", type=Path, help="folder for the meta-trainings (default: one in runs, called after the study)")
    parser.add_argument("--out", type=Path, help="file for the rows (default: that of the study)")
    parser.add_argument("--workers", type=int, help="processes, 0 is one a core; runs this short gain little from more than one")
    args = parser.parse_args()
    try:
        make_rows(Study.read(args.config), args)
    except (ValueError, TypeError, AttributeError, KeyError, OSError, yaml.YAMLError, ArgumentError) as error:
        parser.error(f"{args.config}: {first_line(error)}")


def make_rows(study: Study, args: argparse.Namespace) -> None:
    """Makes the missing rows. Raises ValueError where a setting cannot be."""
    unknown = sorted(set(args.only or ()) - set(study.names))
    if unknown:
        raise ValueError(f"--only must be one or more of {', '.join(map(repr, study.names))} (got {unknown[0]!r})")
    if args.workers is not None:
        study = replace(study, workers=args.workers)
    if study.workers == 1:
        torch.set_num_threads(1)
    register_celo2()
    runs = args.runs or Path("runs") / args.config.stem.replace("_", "-")
    out = args.out or ROOT / study.rows
    out.parent.mkdir(parents=True, exist_ok=True)
    for setting in study.names:
        study.config(setting, 0)  # all are checked before the first is made
    for seed in args.seeds or study.seeds:
        for setting in args.only or study.names:
            measure(study, setting, seed, runs, args.tasks or study.tasks, out)
            if study.mixes and setting in study.settings:
                mix(study, setting, seed, runs, out.parent / Path(study.mixes).name)


if __name__ == "__main__":
    main()
