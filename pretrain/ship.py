"""Put the schedule of a finished run of meta-training among those that are shipped, or make the unlearned start.

    python pretrain/ship.py runs/icons-resnet34      # its schedule, settings, curve and picture
    python pretrain/ship.py start                    # where a schedule for any network starts: nothing is learned

writes NAME.safetensors, NAME.json, NAME.csv and NAME.png to `l3rs/schedules/checkpoints`, without folders of this machine. A name that is
new also belongs in `SHIPPED` of `l3rs/schedules/find.py`. Afterwards, `python tests/optimizer/test_golden.py` writes the first steps anew.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from l3rs import learners
from l3rs.controller.config import ANY_NETWORK
from l3rs.controller.initial import initial_theta
from l3rs.schedules.card import shareable
from l3rs.schedules.find import CHECKPOINTS, START
from l3rs.schedules.learned import Learned
from l3rs.schedules.schedule import LearnedSchedule
from l3rs.schedules.seal import CheckpointError


def start() -> LearnedSchedule:
    """The unlearned start of a schedule for any network; generation 0, without a run, says that there was no meta-training."""
    return LearnedSchedule(ANY_NETWORK, (), initial_theta(ANY_NETWORK, (), seed=0), START, {"generation": 0})


def of_run(run: Path) -> Learned:
    """The schedule that a run chose at its end. Raises CheckpointError if there is none."""
    if not (run / "config.json").is_file():
        raise CheckpointError(f"{run} has no config.json: it is no run of l3rs meta-train")
    name = json.loads((run / "config.json").read_text())["name"]  # empty, where meta-training has made one up
    chosen = [f for f in run.glob("*.safetensors") if f.stem == name or not (name or re.fullmatch(r"(state|theta)-\d+", f.stem))]
    if len(chosen) != 1:
        raise CheckpointError(f"{run} has no {f'{name}.safetensors' if name else 'schedule'}: it is not finished")
    return learners.load(chosen[0])


def ship(run: Path, folder: Path, name: str | None = None) -> list[Path]:
    """Puts the schedule of a run into a folder, with its settings, curve and picture; gives the files.

    Args:
        name: instead of the run's own.

    Raises:
        CheckpointError: the run has no schedule yet.
    """
    learned = of_run(run)
    name = name or learned.name
    config = {**learned.training["config"], "name": name}
    learned = replace(cast(Any, learned), name=name, training=shareable({**learned.training, "config": config}))
    schedule, settings, curve, picture = (folder / f"{name}.{kind}" for kind in ("safetensors", "json", "csv", "png"))
    learned.write(schedule)
    settings.write_text(json.dumps(learned.training["config"], indent=1) + "\n")
    shutil.copyfile(run / "curve.csv", curve)
    shutil.copyfile(run / "curve.png", picture)
    return [schedule, settings, curve, picture]


def main() -> None:
    """Puts it there, and says where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help=f"folder of a run of l3rs meta-train, or {START}")
    parser.add_argument("--name", help="its name from now on (default: the run's)")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS, help="another folder")
    args = parser.parse_args()
    if args.run == START:
        files = [args.out / f"{START}.safetensors"]
        start().write(files[0])
    else:
        try:
            files = ship(Path(args.run), args.out, args.name)
        except (CheckpointError, OSError) as error:
            parser.error(str(error))
    print(*files, sep="\n")


if __name__ == "__main__":
    main()
