"""Verify and measure everything that GPU.md lists, on the machine at hand, within a time that is given.

    python evaluate/gpu.py                          # 8 minutes, on CUDA; then read the table
    python evaluate/gpu.py --minutes 4 --only tests step
    python evaluate/gpu.py --device cpu --quick     # the same parts on a CPU, small: do they run?

Parts come in the order of their weight. Each runs in a process of its own, and is killed with all that it started when its time is up, so
that none takes the others along; what it had found by then stays. A part whose library is missing says so and is passed over. Rows are
appended to `gpu.csv` in `--out`, with device and versions. The rows of GPU.md that a part is for get today's date, the device and the
result; on a CPU no page is marked, unless `--page` names one.

It needs torch, timm and what `import l3rs` needs; the part of Lightning needs that, and the tests pytest.
"""

from __future__ import annotations

import argparse
import csv
import platform
import re
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from options import ROOT, device

from l3rs import __version__
from l3rs.files import append_rows
from l3rs.processes import run_limited
from l3rs.text import table

FIELDS = ("date", "device", "torch", "triton", "python", "l3rs", "part", "row", "what", "value", "unit")
MISSING_LIBRARY = 3  # exit code
TAIL = 300  # characters of an error that the table shows
AT_LEAST = 5.0  # seconds that a part is started with


class Part(NamedTuple):
    """One thing to verify.

    Attributes:
        name: as in `--only`.
        command: what Python is given; the settings are added.
        share: of the time, in parts of what all have together; what one leaves, later ones get.
        rows: of GPU.md, by their first column, that it may mark.
    """

    name: str
    command: tuple[str, ...]
    share: float
    rows: tuple[str, ...]


def part(name: str, share: float, *rows: str) -> Part:
    """A function of `gpu_parts.py`."""
    return Part(name, (str(Path(__file__).resolve()), "--part", name), share, rows)


PARTS = (
    part("tests", 9, "tests", "cpu", "wait", "graph", "triton", "interpreter", "learned", "lanes", "precisions", "guard"),
    part("step", 5, "step"),
    part("share", 5, "share"),
    part("samples", 6, "samples"),
    part("candidates", 6, "candidates"),
    part("gradients", 6, "gradients"),
    part("learned", 4, "learned-step"),
    part("large", 2, "large"),
    part("comparison", 4, "comparison"),
    part("lightning", 3, "lightning"),
)


class Settings(NamedTuple):
    """What a part is told."""

    device: str
    quick: bool
    out: Path


class Rows:
    """The rows of one part, each written as soon as it is found."""

    def __init__(self, settings: Settings, part: str) -> None:
        self.file, self.about = settings.out / "gpu.csv", {**versions(settings.device), "part": part}

    def __call__(self, row: str, what: str, value: object, unit: str = "") -> None:
        """Adds one: for which row of GPU.md, and what was found."""
        value = f"{value:.4g}" if isinstance(value, float) else value
        append_rows(self.file, [{**self.about, "row": row, "what": what, "value": value, "unit": unit}], FIELDS)
        print(f"{what}: {value} {unit}", flush=True)


def versions(device: str) -> dict[str, str]:
    """When, where and with what."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    triton = import_module("triton").__version__ if device == "cuda" and find_spec("triton") else ""
    here = {"torch": torch.__version__, "triton": triton, "python": platform.python_version(), "l3rs": __version__}
    return {"date": date.today().isoformat(), "device": name, **here}


def child(name: str, settings: Settings) -> int:
    """Runs one part in this process; gives the exit code."""
    try:
        getattr(import_module("gpu_parts"), name)(settings, Rows(settings, name))
    except ModuleNotFoundError as error:
        print(f"needs {error.name}, which is not installed" if " needs " not in str(error) else error)
        return MISSING_LIBRARY
    return 0


def read(file: Path, since: int = 0) -> list[dict[str, str]]:
    """The rows after the first `since`."""
    if not file.exists():
        return []
    with file.open(newline="") as rows:
        return list(csv.DictReader(rows))[since:]


def run(each: Part, settings: Settings, seconds: float) -> str:
    """Runs a part in a process of its own; gives how it ended."""
    log = settings.out / f"{each.name}.log"
    words = ["--device", settings.device, "--out", str(settings.out), *(["--quick"] if settings.quick else [])]
    code = run_limited([sys.executable, *each.command, *words], seconds, log)
    last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1][-TAIL:]
    if code == 0:
        return "done"
    if code == MISSING_LIBRARY:
        return f"passed over: {last}"
    return f"time was up after {seconds:.0f} s" if code is None else f"failed, code {code}: {last}"


def said(found: Sequence[dict[str, str]], ended: str) -> str:
    """A row of GPU.md's result: tests are counted, numbers told."""
    tests = [r for r in found if r["unit"] == "test"]
    numbers = [f"{r['what']} {r['value']} {r['unit']}".strip() for r in found if r["unit"] != "test"]
    if tests:
        failed = [r["what"] for r in tests if r["value"] == "failed"]
        skipped = sum(r["value"] == "skipped" for r in tests)
        counted = f"{len(tests) - skipped - len(failed)} of {len(tests)} passed" + (f", {skipped} skipped" if skipped else "")
        numbers.insert(0, counted + (f"; failed: {', '.join(failed)}" if failed else ""))
    if ended != "done":
        numbers.append(ended)
    return "; ".join(numbers)


def mark(text: str, row: str, day: str, device: str, result: str) -> str:
    """GPU.md with the last three cells of one row of its table anew: date, device, result. Raises ValueError if it has no such row."""
    lines = text.splitlines(keepends=True)
    for i, line in enumerate(lines):
        cells = re.split(r"(?<!\\)\|", line.rstrip("\n"))
        if len(cells) == 8 and cells[1].strip() == f"`{row}`":
            cells[4:7] = [f" {cell} " for cell in (day, device, re.sub(r"\s+", " ", result).replace("|", r"\|"))]
            lines[i] = "|".join(cells) + "\n"
            return "".join(lines)
    raise ValueError(f"the page has no row `{row}`")


def verify(parts: Sequence[Part], settings: Settings, seconds: float, page: Path | None) -> list[tuple[str, str, float]]:
    """Runs the parts, as time allows; marks the page after each; gives name, end and seconds of each."""
    end, ended = time.monotonic() + seconds, []
    about = versions(settings.device)
    for i, each in enumerate(parts):
        before, started, left = len(read(settings.out / "gpu.csv")), time.monotonic(), end - time.monotonic()
        limit = left * each.share / sum(p.share for p in parts[i:])
        how = run(each, settings, limit) if limit >= AT_LEAST else "left out: no time was left"
        ended.append((each.name, how, time.monotonic() - started))
        print(f"{each.name}: {how} ({ended[-1][2]:.0f} s)", flush=True)
        found = read(settings.out / "gpu.csv", before)
        for row in each.rows if page is not None else ():
            mine = [r for r in found if row in (r["row"], each.name)]
            if mine or how.startswith("failed"):  # what nothing was found of stays as it was
                text = mark(page.read_text(), row, about["date"], about["device"], said(mine, how))
                page.write_text(text)
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default: 8)")
    parser.add_argument("--device", type=device, default="cuda", help="where (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="tiny networks and few rounds: whether all parts run")
    parser.add_argument("--only", nargs="+", metavar="PART", help=f"some parts: {', '.join(p.name for p in PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for rows and logs (default: runs/gpu)")
    parser.add_argument("--page", type=Path, help="the page to mark (default: GPU.md on CUDA, none on a CPU)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = [p.name for p in PARTS]
    unknown = [name for name in args.only or () if name not in names]
    if unknown:
        parser.error(f"--only must name some of {', '.join(names)} (got {unknown[0]!r})")
    if not args.minutes > 0:
        parser.error(f"--minutes must be positive (got {args.minutes})")
    args.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(args.device, args.quick, args.out)
    if args.part:
        sys.exit(child(args.part, settings))
    page = args.page or (ROOT / "GPU.md" if args.device == "cuda" else None)
    since = len(read(args.out / "gpu.csv"))
    ended = verify([p for p in PARTS if not args.only or p.name in args.only], settings, 60 * args.minutes, page)
    print()
    found = read(args.out / "gpu.csv", since)
    numbers = [[r["part"], r["what"], f"{r['value']} {r['unit']}"] for r in found if r["unit"] != "test"]
    tests = [r for r in found if r["unit"] == "test"]
    print("\n".join(table([["part", "what", "result"], *numbers], left=(0, 1), line=True)))
    print("\n".join(["", *([f"tests: {said(tests, 'done')}", ""] if tests else [])]))
    print("\n".join(table([["part", "ended", "seconds"], *([n, how, f"{s:.0f}"] for n, how, s in ended)], left=(0, 1), line=True)))


if __name__ == "__main__":
    main()
