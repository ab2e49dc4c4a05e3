"""The model card of a learned schedule. Whatever a file claims about itself stays plain text on the card."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l3rs.schedules.learned import Learned, training_config

if TYPE_CHECKING:
    from huggingface_hub import ModelCard, ModelCardData

CURVE = "curve.png"
ADDRESSES = {"://": ":&#47;&#47;", "www.": "www&#46;", "@": "&#64;&#8288;"}  # GitHub makes links of these; the last breaks a word
PAPERS = {
    "L3RS": "[L3RS](https://arxiv.org/abs/2408.09310), the Learned Layer-wise Learning Rate Scheduler",
    "velo": "[VeLO](https://arxiv.org/abs/2211.09760)",
    "celo": "[Celo](https://arxiv.org/abs/2501.12670)",
    "celo2": "[Celo2](https://arxiv.org/abs/2602.19142)",
    "celo2-base": "[Celo2](https://arxiv.org/abs/2602.19142), its base form",
    "small-fc": "[small_fc_lopt](https://arxiv.org/abs/2203.11860)",
    "mulo": "[muLO](https://arxiv.org/abs/2406.00153)",
}


def generate_model_card(learned: Learned, *, repo_id: str, license: str = "apache-2.0", results: str = "") -> ModelCard:
    """Makes the model card from the schedule's own facts.

    Args:
        repo_id: on the Hub; the code example loads it.
        license: its identifier on the Hub; by default the licence of l3rs.
        results: Markdown, such as a table of accuracies; without it the card has no such section.
    """
    from huggingface_hub import ModelCardData

    what, name = learned.facts(), plain(learned.name)
    example = "\n".join([*learned.usage(in_code(repo_id)), "optimizer.step(loss=loss)  # after loss.backward(), in each of the 100 steps"])
    trained = table(meta_training(learned.training)) or "It does not say."
    if curve_of(learned):
        trained += f"\n\n![Accuracy and loss on meta-validation against the generation]({CURVE})"
    sections = {
        "Use it": f"```python\n{example}\n```",
        "What it is": table({k: what[k] for k in ("optimizer", "fits", "directions", "meta-parameters")}),
        "How it was meta-trained": trained,
        "Results": results.strip(),
        "Licence": plain(license),
    }
    about = f"Meta-parameters of {PAPERS[what['optimizer']]}: a learned optimizer, used like any of `torch.optim`, to fine-tune pretrained "
    text = [f"# {name}\n\n{about}networks. Load them with l3rs.", *(f"## {title}\n\n{part}" for title, part in sections.items() if part)]
    return card(ModelCardData(license=license, library_name="l3rs", tags=["learned-optimizer", "fine-tuning", "arxiv:2408.09310"]), text)


def card(front: ModelCardData, parts: Sequence[str]) -> ModelCard:
    """The card of its front matter and its parts, in Markdown."""
    from huggingface_hub import ModelCard

    return ModelCard(f"---\n{front.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def in_code(repo_id: str) -> str:
    """An id without what would end the string, the line or the block of an example that has it."""
    return re.sub(r'["\\`\s]|[^\x20-\x7e]', "-", repo_id)


def curve_of(learned: Learned) -> Path | None:
    """Finds the picture of the meta-training curve beside the file, in a run's folder or among the shipped schedules."""
    beside = () if learned.source is None else (learned.source.with_suffix(".png"), learned.source.with_name(CURVE))
    return next((file for file in beside if file.is_file()), None)


def shareable(training: dict[str, Any]) -> dict[str, Any]:
    """Removes folders and addresses of this machine from the record of meta-training; only names of files stay."""
    if not isinstance(training.get("config"), dict):
        return training
    kept = {k: v for k, v in training["config"].items() if k not in ("data", "cache", "ray_address")}
    kept |= {k: Path(kept[k]).name for k in ("split", "weights") if isinstance(kept.get(k), str)}
    if isinstance(zoo := kept.get("zoo"), dict):
        kept["zoo"] = {k: Path(v).name if k in ("file", "weights") and isinstance(v, str) else v for k, v in zoo.items()}
    if isinstance(kept.get("start"), list):
        kept["start"] = [Path(str(file)).name for file in kept["start"]]
    return {**training, "config": kept}


def meta_training(training: Mapping[str, Any]) -> dict[str, str]:
    """Makes the rows of the table on meta-training; unknown facts have none.

    An old config lacks newer settings, which had today's defaults.
    """
    return dict(_rows(training, training_config(training)))


def _rows(training: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not config and training.get("generation") == 0:
        yield "generations", "none: it was not meta-trained, and learned nothing; meta-training starts from it"
        return
    zoo = config.get("zoo")
    many = zoo.get("file") if isinstance(zoo, Mapping) else None
    if many is not None:
        yield "networks", f"those of {Path(str(many)).name} that are not held out, in turn"
    elif isinstance(training.get("config"), Mapping):
        split = Path(str(config.get("split", "icons"))).name
        yield "network", _network(config, split)
        yield "class split", split.removesuffix(".json")
    if isinstance(begun := config.get("start"), list) and begun:
        yield "started from", ", ".join(Path(str(given)).name for given in begun)
    if many is None and isinstance(task := config.get("task"), Mapping):
        yield "tasks", f"{task.get('classes')} classes, batches of {task.get('batch_size')}"
    if isinstance(steps := config.get("steps"), list):
        yield "steps of a run", " to ".join(map(str, steps))
    search = config.get("search", "nes")
    if isinstance(nes := config.get("nes"), Mapping):
        if search != "nes":
            yield "search", f"meta-gradients{', then evolution strategies' if search == 'both' else ''}, seed {nes.get('seed')}"
        if search != "gradient":
            yield "candidates", f"{nes.get('population')} a generation, sigma {nes.get('sigma')}, seed {nes.get('seed')}"
    if "generation" in training:
        others = config.get("generations", training["generation"])
        chosen = f", chosen among {others} on meta-validation" if others != training["generation"] else ""
        yield "generations", f"{training['generation']}{chosen}"
    if isinstance(accuracy := training.get("validation_accuracy"), float):
        yield "meta-validation", f"accuracy {accuracy:.3f}, loss {_number(training.get('validation_loss'), float('nan')):.3f}"
    if (seconds := _number(training.get("seconds"), -1)) >= 0:
        cost = {**config, **training}
        yield "cost", _cost(seconds / 3600, _number(cost.get("workers")), _number(cost.get("gpus_per_actor")))


def _number(value: Any, otherwise: float = 0) -> float:
    return value if isinstance(value, int | float) and abs(value) < 1e300 else otherwise  # neither NaN nor an integer of 400 digits


def _cost(hours: float, workers: float, gpus: float) -> str:
    if gpus:
        return f"{hours:.2f} hours on {workers or 'all'} processes, each with {gpus} of a GPU"
    return f"{hours * workers:.2f} core-hours" if workers else f"{hours:.2f} hours, one process on each core"


def _network(config: Mapping[str, Any], split: str) -> str:
    model, width, weights = config.get("model", "resnet34"), config.get("width"), config.get("weights")
    if config.get("from_scratch"):
        start = "from random weights, anew for each task"
    elif weights is None and split in ("icons", "glyphs") and model == "resnet34" and width in (None, 16):
        width, start = 16, f"the one that l3rs ships, pretrained on {split}"
    else:
        start = "with timm's pretrained weights" if weights is None else f"with the pretrained weights {Path(str(weights)).name}"
    return f"{model}{'' if width is None else f' at width {width}'}, {start}"


def table(rows: Mapping[str, str]) -> str:
    """Two columns without a header, of plain text; rows without a value are left out."""
    lines = [f"| {key} | {plain(value)} |" for key, value in rows.items() if value]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""


def plain(text: str) -> str:
    """Escapes a text for one line or cell of Markdown: no tags, links, addresses or pictures, and nothing unprintable."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`|\[\]*~$_])", r"\\\1", line)
    for address, shown in ADDRESSES.items():
        line = re.sub(re.escape(address), shown, line, flags=re.IGNORECASE)
    return line


__all__ = ["CURVE", "card", "curve_of", "generate_model_card", "in_code", "meta_training", "plain", "shareable", "table"]
