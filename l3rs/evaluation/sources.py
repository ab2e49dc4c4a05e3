"""The sources of tables and figures: the configs of a checkout, its committed rows, and further rows."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import jsonargparse
import pandas as pd
import yaml

from l3rs.evaluation.cell_tables import Cell
from l3rs.evaluation.cells import EvaluationConfig, Rows, check_made_with
from l3rs.evaluation.pages import Section
from l3rs.evaluation.study import Study
from l3rs.finetuning.zoo import Network, read_zoo
from l3rs.schedules.find import PAPER_SPECIALIST

PAPER = {"A": 5, "A-head": 7, "B": 9, "C": 11, "D": 13, "E": 15}  # cell: the first of its two tables in the paper
AWAY = ("B", "C", "D", "E")  # cells of other images or weights
HEAD_ALONE = "A-head"  # the cell with all but the head frozen
STATISTICS = "before an evaluation, the mean statistics of the last 20 training batches replace BatchNorm's running ones"
BEYOND = {  # cell: its section and caption
    "recipes": (
        "Recipes as they are used",
        "Recipes as their users run them: L3RS with a head in closed form and refreshed statistics, its rivals untuned as their authors "
        "publish them, and tuned baselines from a random head with refreshed statistics.",
    ),
    "equal": (
        "Equal terms",
        f"Equal terms: all begin with a head in closed form and are evaluated with refreshed statistics ({STATISTICS}), and learning rates "
        "were tuned so.",
    ),
    "refreshed": (
        "BatchNorm refreshed",
        f"All arms like schedule-free: {STATISTICS}. Accuracy, as in Table 5.",
    ),
    "averaged": (
        "What adaptivity adds",
        "What adaptivity adds: L3RS against a schedule with its learned lambda and mu averaged over time and layers.",
    ),
}
NETWORKS = "networks"  # cells of networks that no schedule met
SCRATCH = "scratch"  # the same from random weights
ELSEWHERE = ("resnet18-w16", "resnet34-w64")  # cells of other networks, by the paper's protocol


class Sources:
    """All rows of the tables and figures.

    Args:
        root: the checkout.
        rows: folder of rows that are not committed.
        only: cells of the folder to show; None shows the paper's and those beyond it.
        configs: folder of the cells' configs, `configs/evaluate` by default. Another folder has cells alone: all else is of Icons.

    Raises:
        ValueError: there is no such cell.
    """

    def __init__(self, root: Path, rows: Path, only: list[str] | None = None, configs: Path | None = None) -> None:
        ours = root / "configs" / "evaluate"
        self.root, self.rows, self.only, self.configs = root, rows, only, (configs or ours).resolve()
        self.of_icons = self.configs == ours.resolve()  # whether the cells use the shipped images
        there = sorted(file.stem for file in self.configs.glob("*.yaml"))
        unknown = [name for name in only or () if name not in there]
        if unknown or not there:
            raise ValueError(
                f"{self.configs} has {', '.join(there) or 'no cells'}" + (f", and --cells names {unknown[0]}" if unknown else "")
            )

    @property
    def results(self) -> Path:
        """The folder of committed rows."""
        return self.root / "evaluate" / "results"

    @cached_property
    def cells(self) -> Mapping[str, Cell]:
        """The cells with a config, by name.

        Raises:
            ValueError: rows of a cell are of other images, tasks or settings than its config has now.
        """
        found = {}
        stress = sorted(file.stem for file in self.configs.glob("stress-*.yaml"))
        for name in self.only or (*PAPER, *stress, *BEYOND, *ELSEWHERE, NETWORKS, SCRATCH):
            file = self.configs / f"{name}.yaml"
            configs = read_cells(file) if file.exists() else {}
            for network, config in configs.items():
                there = Rows(self.rows / config.cell, self.results / config.cell).read()
                check_made_with(config, there)
                which, of = (f" --networks {network}", f", {network}") if network else ("", "")
                found[f"{name}-{network}" if network else name] = Cell(
                    config, os.path.relpath(file, self.root) + which, there, about(file) + of
                )
        return found

    def study(self, name: str) -> Study:
        """A study of the checkout."""
        return Study.read(self.root / "configs" / f"{name}.yaml")

    def csv(self, *names: str) -> pd.DataFrame:
        """Committed rows of one or more measurements."""
        return pd.concat([pd.read_csv(self.results / f"{name}.csv") for name in names], ignore_index=True)

    def decisions(self) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
        """Reads the decisions of the paper's specialist, and its time features."""
        files = [self.results / "decisions" / f"{PAPER_SPECIALIST}{suffix}.parquet" for suffix in ("", "-time")]
        decided, times = (pd.read_parquet(file) if file.exists() else None for file in files)
        return decided, times


def read_cells(file: Path, data: str | None = None) -> dict[str, EvaluationConfig]:
    """Reads the cells of a YAML file: one, under an empty name, or, if it has a `zoo`, one for each network held out there, by its name.

    A zoo is a mapping: `file`, one that `l3rs.finetuning.zoo.read_zoo` reads, by its path from this one; `weights`, the folder of the
    networks' weights; `tasks`, the size of tasks by split; `from_scratch`, whether random weights take the place of theirs; `without`,
    networks that are left out. The network's name replaces `{network}` in `cell` and `rates`.

    Args:
        data: replaces the folder of the images, of a zoo where one is named.

    Raises:
        ValueError: a file is no cell or no zoo; the message is one line.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EvaluationConfig, as_group=False)
    try:
        given = yaml.safe_load(file.read_text())
        if not isinstance(given, dict):
            raise ValueError("it is no cell: it must map fields of EvaluationConfig to values")
        zoo = given.pop("zoo", None)
        if zoo is not None and not (isinstance(zoo, dict) and {"file", "weights"} <= zoo.keys()):
            raise ValueError("its zoo must have file, a list of networks, and weights, their folder")
        make = partial(made_of, parser)
        found = {"": make(given)} if zoo is None else of_zoo(given, read_zoo(file.parent / zoo["file"], zoo["weights"]), zoo, make)
        if data is not None:
            for name in [name for name, config in found.items() if not config.workload.embedded] or list(found):  # none takes it: an error
                found[name] = replace(found[name], workload=replace(found[name].workload, data=data))
    except (jsonargparse.ArgumentError, yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from None
    return found


def chosen(cells: Mapping[str, EvaluationConfig], networks: Sequence[str] | None) -> list[EvaluationConfig]:
    """Picks the cells of some networks, or all. Raises ValueError if there is no such network."""
    for name in networks or ():
        if name not in cells or not name:
            raise ValueError(f"--networks names {name!r}; there are {', '.join(filter(None, cells)) or 'none in this config'}")
    return [cells[name] for name in networks or cells]


def made_of(parser: jsonargparse.ArgumentParser, values: Mapping[str, Any]) -> EvaluationConfig:
    """Makes a cell of what a YAML file has."""
    return EvaluationConfig(**vars(parser.instantiate(parser.parse_object(dict(values)))))


def of_zoo(
    given: Mapping[str, Any],
    networks: Mapping[str, Network],
    zoo: Mapping[str, Any],
    make: Callable[[Mapping[str, Any]], EvaluationConfig],
) -> dict[str, EvaluationConfig]:
    """Makes the cell of each network that is held out.

    Where a split has no classes to tune on, as Glyphs, the rates are those of the network that is called the same on Icons.
    """
    found = {}
    without = zoo.get("without", [])
    unknown = [name for name in without if name not in networks or not networks[name].held_out]
    if unknown:
        raise ValueError(f"its zoo is without {unknown[0]!r}, which is no network that is held out there")
    for name, network in networks.items():
        if network.held_out and name not in without:
            split = network.workload.split
            names = {"cell": name, "rates": f"{name.removesuffix('-glyphs')}-icons" if split == "glyphs" else name}
            named = {key: str(given[key]).replace("{network}", called) for key, called in names.items() if key in given}
            task = zoo.get("tasks", {}).get(split)
            config = make({**given, **named, **({} if task is None else {"task": task})})
            scratch = replace(network.workload, weights=None, from_scratch=True)
            found[name] = replace(config, workload=scratch if zoo.get("from_scratch") else network.workload)
    return found


def about(file: Path) -> str:
    """Reads the description of a config, in the brackets of its first comment; its name, where there is none."""
    comment = " ".join(line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), file.read_text().splitlines()))
    text = comment.partition("(")[2].rpartition(")")[0].split(": ", 1)[-1]
    if not text:
        return file.stem
    return f"{text[0].upper()}{text[1:]}"


def collect(sources: Sources, makers: tuple[Callable[[Sources], Iterator[tuple[str, Any]]], ...]) -> list[Section]:
    """Collects the items of all makers by section, in the order in which sections first come."""
    found: dict[str, list[Any]] = {}
    for maker in makers:
        for section, item in maker(sources):
            found.setdefault(section, []).append(item)
    return list(found.items())


def arguments(doc: str) -> argparse.ArgumentParser:
    """Makes the options of the scripts of tables and figures."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=Path, help="folder of the cells' configs (default: configs/evaluate)")
    parser.add_argument("--cells", nargs="+", help="some of them, such as A E (default: all)")
    parser.add_argument(
        "--rows", type=Path, default=Path("runs/evaluation"), help="folder of rows, beside evaluate/results (default: %(default)s)"
    )
    return parser
