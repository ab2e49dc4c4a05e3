"""The model card of a learned schedule, from what the schedule knows of itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l3rs.schedules.learned import Learned, training_config

PAPERS = {
    "L3RS": "[L3RS](https://arxiv.org/abs/2408.09310), the Learned Layer-wise Learning Rate Scheduler",
    "velo": "[VeLO](https://arxiv.org/abs/2211.09760)",
    "celo": "[Celo](https://arxiv.org/abs/2501.12670)",
    "celo2": "[Celo2](https://arxiv.org/abs/2602.19142)",
    "celo2-base": "[Celo2](https://arxiv.org/abs/2602.19142), its base form",
    "small-fc": "[small_fc_lopt](https://arxiv.org/abs/2203.11860)",
    "mulo": "[muLO](https://arxiv.org/abs/2406.00153)",
}


def body(learned: Learned, repo_id: str, curve: str | None, license: str, results: str) -> str:
    """Markdown, below the front matter.

    Args:
        repo_id: what the code example loads.
        curve: the picture's file beside the card, if there is one.
        results: Markdown; empty is no such section.
    """
    what = learned.facts()
    sections = [
        f"# {learned.name}\n\nMeta-parameters of {PAPERS[what['optimizer']]}: "
        "a learned optimizer, used like any of `torch.optim`, to fine-tune pretrained networks. Load them with l3rs.",
        f"## Use it\n\n```python\n{_example(learned, repo_id)}\n```",
        f"## What it is\n\n{_table({k: what[k] for k in ('optimizer', 'fits', 'directions', 'meta-parameters') if what[k]})}",
        f"## How it was meta-trained\n\n{_table(meta_training(learned.training)) or 'It does not say.'}",
    ]
    if curve:
        sections[-1] += f"\n\n![Accuracy and loss on meta-validation against the generation]({curve})"
    if results:
        sections.append(f"## Results\n\n{results.strip()}")
    sections.append(f"## Licence\n\n{license}")
    return "\n\n".join(sections) + "\n"


def _example(learned: Learned, repo_id: str) -> str:
    return "\n".join([*learned.usage(repo_id), "optimizer.step(loss=loss)  # after loss.backward(), in each of the 100 steps"])


def meta_training(training: Mapping[str, Any]) -> dict[str, str]:
    """Rows of a table on how it was meta-trained; what is not known has none.

    Settings that a config does not have were not there yet when it was written, and were what they are by default now.
    """
    config = training_config(training)
    rows = {}
    if isinstance(training.get("config"), Mapping):
        split = Path(str(config.get("split", "icons"))).name
        rows["network"] = _network(config, split)
        rows["class split"] = split.removesuffix(".json")
        if isinstance(task := config.get("task"), Mapping):
            rows["tasks"] = f"{task.get('classes')} classes, batches of {task.get('batch_size')}"
        if isinstance(steps := config.get("steps"), list):
            rows["steps of a run"] = " to ".join(map(str, steps))
        if isinstance(nes := config.get("nes"), Mapping):
            rows["candidates"] = f"{nes.get('population')} a generation, sigma {nes.get('sigma')}, seed {nes.get('seed')}"
    if "generation" in training:
        rows["generations"] = str(training["generation"])
        if config and config.get("generations") != training["generation"]:
            rows["generations"] += f", chosen among {config.get('generations')} on meta-validation"
    if isinstance(accuracy := training.get("validation_accuracy"), float):
        rows["meta-validation"] = f"accuracy {accuracy:.3f}, loss {training.get('validation_loss', float('nan')):.3f}"
    if isinstance(seconds := training.get("seconds"), float | int):
        cost = {**config, **training}
        workers, gpus = cost.get("workers", 0), cost.get("gpus_per_actor", 0)
        hours = seconds / 3600
        rows["cost"] = f"{hours * workers:.2f} core-hours" if workers and not gpus else f"{hours:.2f} hours"
        if gpus:
            rows["cost"] += f" on {workers or 'all'} processes, each with {gpus} of a GPU"
        elif not workers:
            rows["cost"] += ", one process on each core"
    return rows


def _network(config: Mapping[str, Any], split: str) -> str:
    model, width, weights = config.get("model", "resnet34"), config.get("width"), config.get("weights")
    if config.get("from_scratch"):
        start = "from random weights, anew for each task"
    elif weights is None and split in ("icons", "glyphs") and model == "resnet34" and width in (None, 16):
        width, start = 16, f"the one that l3rs ships, pretrained on {split}"
    else:
        start = "with timm's pretrained weights" if weights is None else f"with the pretrained weights {Path(str(weights)).name}"
    return f"{model}{'' if width is None else f' at width {width}'}, {start}"


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]) if rows else ""


__all__ = ["body", "meta_training"]
