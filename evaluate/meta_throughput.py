"""What meta-training costs beyond forward and backward pass, and what a second process gives.

    python evaluate/meta_throughput.py
    python evaluate/meta_throughput.py --search gradient    # of meta-gradients, four tasks a generation
    python evaluate/meta_throughput.py --device cuda --processes 1 4 8    # one process, this many runs at once

appends to `evaluate/results/meta_throughput.csv`. The bare pass is that of the same network on the same batches, without drawing,
features, update or evaluation. Generations are those of a meta-training run with K uniform in 10 to 100: all of an NES step is in
them, on one process and on two. Bare passes and generations are interleaved, and the ratio is of medians. As many bare passes side by
side as there are processes show what the machine itself loses. It should have nothing else to do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
import torch
from options import RESULTS, count, device
from torch.nn import functional as F
from tqdm import trange

from l3rs.files import append_rows
from l3rs.finetuning.captured import finish
from l3rs.finetuning.workbench import workbench
from l3rs.meta.config import MetaTrainConfig, NESConfig
from l3rs.meta.descent import Search, search_for
from l3rs.meta.problem import FineTuning
from l3rs.meta.train import generation_tasks, processes, start

FIELDS = ("date", "what", "processes", "inner_steps_per_second", "times_bare", "torch")


def bare(config: MetaTrainConfig, steps: int) -> float:
    """Seconds of one forward and backward pass, without anything else, as it comes: no CUDA graph."""
    bench = workbench(config.workload, config.task, config.device)
    tasks = bench.tasks("meta-train")
    task = tasks.draw(0, 8)
    network = bench.network_for(task.head_seed).train()
    batches = [tuple(t.to(config.device) for t in task.batch(tasks.images, i)) for i in range(8)]
    finish(torch.device(config.device))
    started = time.perf_counter()
    for i in range(steps):
        inputs, labels = batches[i % 8]
        for p in network.parameters():
            p.grad = None
        F.cross_entropy(network(inputs), labels).backward()
    finish(torch.device(config.device))
    return (time.perf_counter() - started) / steps


def bare_alone(steps: int) -> float:
    """`bare` in a process of its own, of one thread."""
    torch.set_num_threads(1)
    config = MetaTrainConfig()
    bare(config, 20)
    return bare(config, steps)


def bare_together(count: int, steps: int = 400) -> float:
    """Passes a second that `count` processes make side by side: what the machine gives, whatever is run on it."""
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        return sum(1 / seconds for seconds in pool.map(bare_alone, [steps] * count))


def generation(search: Search, problem: FineTuning, config: MetaTrainConfig, number: int) -> float:
    """Seconds of an inner step, all costs of a generation included."""
    problem.tasks = generation_tasks(config, number)
    started = time.perf_counter()
    search.step()
    runs = config.nes.population if config.search == "nes" else 1  # of each task
    return (time.perf_counter() - started) / (runs * sum(steps for _, steps in problem.tasks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=count, default=7, help="measured, for each number of processes")
    parser.add_argument("--population", type=count, default=8, help="candidates a generation")
    parser.add_argument("--search", choices=("nes", "gradient"), default="nes", help="what is timed")
    parser.add_argument("--processes", type=count, nargs="+", default=[1, 2], help="numbers of processes, or on CUDA of runs at once")
    parser.add_argument("--device", type=device, default="cpu", help="where (default: cpu)")
    parser.add_argument("--out", type=Path, default=RESULTS / "meta_throughput.csv", help="file for the rows")
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 1000, args.generations)
    passes: list[float] = []
    rates: dict[int, list[float]] = {}
    for workers in args.processes:
        meta_batch = 1 if args.search == "nes" else 4
        population = NESConfig(population=args.population)
        config = MetaTrainConfig(workers=workers, search=args.search, meta_batch=meta_batch, nes=population, device=args.device)
        learned = start(config)
        problem = FineTuning(learned, config, processes(config))
        search = search_for(problem, learned.theta / problem.scale, config)
        bare(config, 50)
        problem.tasks = [(0, 3)] * workers
        search.step()  # the processes start, and load what they need
        rates[workers] = []
        for i in trange(args.generations, desc=f"{workers} processes" if on_cpu else f"{workers} at once"):
            passes.append(bare(config, 100))
            rates[workers].append(generation(search, problem, config, int(numbers[i])))
        problem.stop()
    once = float(np.median(passes))
    rows = [{"what": "forward and backward", "processes": 1, "inner_steps_per_second": round(1 / once, 1), "times_bare": 1.0}]
    together = {workers: round(bare_together(workers), 1) for workers in args.processes if workers > 1 and on_cpu}
    for workers, rate in together.items():
        rows.append({"what": "forward and backward", "processes": workers, "inner_steps_per_second": rate, "times_bare": 1.0})
    for workers, times in rates.items():
        each = float(np.median(times))
        times_bare = round(together.get(workers, 1 / once) * each, 3)  # against as many processes
        what = "meta-training" if args.search == "nes" else "meta-gradients"
        rows.append({"what": what, "processes": workers, "inner_steps_per_second": round(1 / each, 1), "times_bare": times_bare})
    for row in rows:
        print(
            f"{row['what']}, processes: {row['processes']}: {row['inner_steps_per_second']} steps/s, {row['times_bare']} times bare a core"
        )
    where = "" if on_cpu else f", {torch.cuda.get_device_name()}"
    about = {"date": date.today().isoformat(), "torch": torch.__version__}
    append_rows(args.out, [{**about, **row, "what": f"{row['what']}{where}"} for row in rows], FIELDS)
    if {1, 2} <= set(rates) and on_cpu:
        gain, bound = np.median(rates[1]) / np.median(rates[2]), together[2] * once
        print(f"two processes make {gain:.2f} times as many steps as one, where bare passes make {bound:.2f} times as many")


if __name__ == "__main__":
    main()
