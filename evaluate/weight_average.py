"""Would an average of the weights be better than the last ones? Runs that are evaluated at (1 - share) last + share average.

    python evaluate/weight_average.py

The average is exponential, over the weights after each step; it looks back on 1/10 to all of the run. Every run begins with a head start,
and BatchNorm's statistics are refreshed at each point. The first `--tasks` meta-validation tasks choose the most accurate mixture of each
length; the next `--others` judge it alone. Rows go to `evaluate/results/weight_average.csv`; what is there already, of the same schedule
and settings, is not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from options import ROOT, count, schedule
from torch import Tensor
from tqdm import tqdm

from l3rs.evaluation.cell_tables import WORST
from l3rs.evaluation.cells import read_rows
from l3rs.files import append_rows
from l3rs.finetuning.tasks import task_seed
from l3rs.finetuning.unroll import REFRESH, evaluate, unroll, where_evaluated
from l3rs.finetuning.workbench import Workbench, workbench
from l3rs.meta.config import read_config
from l3rs.meta.folder import mark_of
from l3rs.meta.train import start
from l3rs.optimizer.l3rs import L3RS
from l3rs.schedules.learned import identity
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.stats import interval

FIELDS = ("schedule", "steps", "task", "span", "share", "accuracy", "loss", "made_with")
KEY = ("made_with", "steps", "task", "span", "share")
SPANS = (0.1, 0.2, 0.5, 1.0)  # of the run, that an average looks back on
SHARES = (0.25, 0.5, 0.75, 1.0)


class Average:
    """The exponential average of some parameters that looks back on `steps` steps, over their values at each `update`."""

    def __init__(self, parameters: list[Tensor], steps: float) -> None:
        self.parameters, self.decay, self.weight = parameters, max(0.0, 1 - 1 / steps), 0.0
        self.total = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.total, self.parameters, 1 - self.decay)
        self.weight = self.decay * self.weight + 1 - self.decay

    def values(self) -> list[Tensor]:
        return [t / self.weight for t in self.total]


Mixture = tuple[float, float]  # span and share
LAST = (0.0, 0.0)  # the last weights


def run(learned: LearnedSchedule, bench: Workbench, steps: int, task: int, mixtures: list[Mixture]) -> Iterator[tuple[float, ...]]:
    """One run, evaluated at its last weights and at mixtures: span, share, accuracy, loss. Spans within one step are the last weights."""
    tasks, drawn, network = bench.ready("meta-validation", task_seed(task), steps, "start")
    optimizer = L3RS(network.named_parameters(), steps, learned, guard=False)  # as meta-training has it
    parameters = list(network.parameters())
    averages = {span: Average(parameters, span * steps) for span, _ in mixtures if span * steps > 1}

    def update(*_: object) -> None:
        for average in averages.values():
            average.update()

    optimizer.register_step_post_hook(update)
    report = unroll(network, optimizer, tasks.images, drawn, refresh=True)
    yield *LAST, report.accuracy[steps], report.loss[steps]
    last = [p.detach().clone() for p in parameters]
    batches = [drawn.batch(tasks.images, i)[0] for i in range(max(0, steps - REFRESH), steps)]
    for span, share in mixtures:
        if span in averages:
            with torch.no_grad():
                torch._foreach_copy_(parameters, torch._foreach_lerp(last, averages[span].values(), share))
            with where_evaluated(network, optimizer, batches, refresh=True):
                yield span, share, *evaluate(network, *drawn.held_out(tasks.images))


def gains(rows: pd.DataFrame, measure: str = "accuracy", scale: float = 100) -> pd.DataFrame:
    """What each mixture gains over the last weights: a line a task, a column a mixture. A run that diverged has the worst."""
    values = rows.fillna(WORST).pivot_table(index="task", columns=["span", "share"], values=measure)
    return scale * values.drop(columns=[LAST]).sub(values[LAST], axis=0)


def compared(rows: pd.DataFrame, spans: Sequence[float]) -> pd.DataFrame:
    """What each mixture of these spans gains in accuracy, in points, on the tasks that all of them have."""
    return gains(rows[rows.span.isin([LAST[0], *spans])]).dropna()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/meta_train/icons_any_network.yaml", help="of the unlearned start")
    parser.add_argument("--learned", type=schedule, nargs="+", default=[], help="schedules besides the unlearned start, by names or paths")
    parser.add_argument("--steps", type=count, nargs="+", default=[10, 25, 50], help="lengths of runs (default: 10 25 50)")
    parser.add_argument("--spans", type=float, nargs="+", default=SPANS, help="shares of a run to look back on (default: 0.1 0.2 0.5 1)")
    parser.add_argument("--tasks", type=count, default=16, help="to choose by (default: %(default)s)")
    parser.add_argument("--others", type=count, default=24, help="to judge by (default: %(default)s)")
    parser.add_argument("--rows", type=Path, default=ROOT / "evaluate/results/weight_average.csv", help="file for the rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = read_config(args.config)
    if config.variety is not None:
        parser.error(f"--config must have one network (got {args.config}, which has zoo.file {config.zoo.file})")
    bench = workbench(config.workload, config.task)
    schedules = {"unlearned start": start(config)} | {one.name: one for one in args.learned}
    marks = {name: mark_of(config, name, identity(one)) for name, one in schedules.items()}
    all_mixtures = [(span, share) for span in args.spans for share in SHARES]

    def make(keys: list[tuple[str, int, int]], mixtures: dict[tuple[str, int], Mixture]) -> pd.DataFrame:
        """Makes the runs that lack rows, of the mixture of a schedule and a length, or of all; gives the rows."""
        done = set(read_rows(args.rows, FIELDS)[list(KEY)].itertuples(index=False, name=None))
        for name, steps, task in tqdm(keys):
            about = marks[name], steps, task
            wanted = [mixture for mixture in ([mixtures[name, steps]] if mixtures else all_mixtures) if mixture[0] * steps > 1]
            lacking = [mixture for mixture in (LAST, *wanted) if (*about, *mixture) not in done]
            if lacking:
                made = run(schedules[name], bench, steps, task, [mixture for mixture in lacking if mixture != LAST])
                rows = [(name, steps, task, *of, round(a, 6), round(x, 6), marks[name]) for *of, a, x in made if tuple(of) in lacking]
                append_rows(args.rows, [dict(zip(FIELDS, row, strict=True)) for row in rows], FIELDS)
        rows = read_rows(args.rows, FIELDS)
        return rows[rows.made_with.isin(marks.values())]

    pairs = [(name, steps) for name in schedules for steps in args.steps]
    rows, best = make([(*pair, task) for task in range(args.tasks) for pair in pairs], {}), {}
    for name, steps in pairs:
        chosen = compared(rows[(rows.schedule == name) & (rows.steps == steps) & (rows.task < args.tasks)], args.spans)
        best[name, steps] = chosen.mean().idxmax()
        print(f"\n{name}, {steps} steps: points that a mixture gains, on {len(chosen)} tasks; rows: span, columns: share")
        print(chosen.mean().unstack().round(2).to_string())
    rows = make([(*pair, args.tasks + task) for task in range(args.others) for pair in pairs], best)
    for (name, steps), (span, share) in best.items():
        mine = rows[(rows.schedule == name) & (rows.steps == steps) & (rows.task >= args.tasks)]
        for measure, scale in (("accuracy", 100), ("loss", -1)):
            others = gains(mine, measure, scale)[span, share].dropna() if len(mine) else mine.loss
            if len(others):
                found, (low, high) = others.mean(), interval(others)
                what = f"span {span:g}, share {share:g}, gains {found:+.3f} ({low:+.3f} to {high:+.3f}) in {measure}"
                print(f"{name}, {steps} steps: the best there, {what}, on {len(others)} other tasks")


if __name__ == "__main__":
    main()
