"""Files that were damaged, in a thousand ways: an error in one sentence each time, or a load in which nothing has changed.
Nothing is ever unpickled."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from conftest import random_schedule, small_network
from safetensors.torch import load_file, save_file

import l3rs
from l3rs import learners
from l3rs.cli.info import describe
from l3rs.data.splits import PURPOSES, ClassSplit
from l3rs.data.transform import Transform
from l3rs.learned import weights
from l3rs.learned.weights import LearnedWeights
from l3rs.networks import pretrained as backbones
from l3rs.own_images import classifier
from l3rs.own_images.classifier import Classifier, ClassifierError
from l3rs.schedules.seal import CheckpointError, sealed_text

SECONDS = 10.0  # that a file may take at most, on a machine with other work; it takes a few milliseconds
STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**9,
    10**400,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "狐",
    [],
    [[]],
    {},
    {"a": []},
    [1, "a"],
)


@pytest.fixture(autouse=True)
def nothing_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise AssertionError("something was unpickled")

    real = torch.load

    def load(*arguments: Any, weights_only: bool = False, **options: Any) -> Any:
        assert weights_only
        return real(*arguments, weights_only=True, **options)

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", load)


@pytest.fixture
def schedule(tmp_path: Path) -> Path:
    random_schedule(small_network()).write(tmp_path / "schedule.safetensors")
    return tmp_path / "schedule.safetensors"


def damaged(data: bytes, seed: int) -> bytes:
    """A file with one thing wrong: a bit, a byte, a range that is gone, doubled, zeroed or random, another length of the header."""
    r = random.Random(seed)
    header = min(len(data), 8 + int.from_bytes(data[:8], "little")) if len(data) > 8 else len(data)
    begin, end = r.choice([(0, min(8, len(data))), (0, header), (0, len(data))])
    at, size = r.randrange(begin, end), 1 + int(2 ** r.uniform(0, 10))
    piece = data[at : at + size]
    new = {
        0: bytes([data[at] ^ 1 << r.randrange(8)]) + data[at + 1 : at + size],
        1: b"",
        2: piece + piece,
        3: bytes(len(piece)),
        4: r.randbytes(len(piece)),
        5: bytes([r.randrange(256)]) + piece[1:],
    }
    kind = r.randrange(8)
    if kind == 6:
        return data[:at]
    if kind == 7:
        return struct.pack("<Q", r.choice([header - 8 + r.randrange(-99, 99), r.randrange(2**63), 2**64 - 1, 0])) + data[8:]
    return data[:at] + new[kind] + data[at + size :]


def strange_metadata(path: Path, number: int) -> bytes:
    """The file with something else at one place of its metadata, or with metadata that is no JSON."""
    about = json.loads(metadata(path))
    places = list(walk(about))
    keys, value = places[number % len(places)], STRANGE[number // len(places) % len(STRANGE)]
    at = about
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    return with_metadata(path, json.dumps(about))


def walk(value: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*keys, key)
        yield from walk(value[key], (*keys, key))


def metadata(path: Path) -> str:
    data = path.read_bytes()
    text: str = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["l3rs"]
    return text


def with_metadata(path: Path, text: str) -> bytes:
    other = path.with_name("other.safetensors")
    tensors = load_file(path)
    save_file(tensors, other, metadata=sealed_text(text, tensors))
    return other.read_bytes()


def outcomes(files: Iterator[bytes], path: Path, load: Callable[[Path], object], error: type[Exception]) -> Counter[str]:
    """How often loading was refused, and how often not. Whatever else it does fails here."""
    found: Counter[str] = Counter()
    for number, data in enumerate(files):
        path.write_bytes(data)
        started = time.perf_counter()
        try:
            load(path)
        except error as refusal:
            found["refused" if str(path) in str(refusal) else "refused without its name"] += 1
        except Exception as other:
            raise AssertionError(f"file {number}: {type(other).__name__}: {other}") from other
        else:
            found["loaded"] += 1
        assert time.perf_counter() - started < SECONDS
    return found


def test_a_schedule_damaged_a_thousand_times(schedule: Path) -> None:
    """It is refused, or what is loaded is what was written: the damage is where nothing is kept."""
    data, before = schedule.read_bytes(), l3rs.load(schedule)

    def load(path: Path) -> None:
        learned = l3rs.load(path)
        assert (learned.config, learned.layers, learned.name, learned.training) == (
            before.config,
            before.layers,
            before.name,
            before.training,
        )
        assert torch.equal(learned.theta, before.theta)

    found = outcomes((damaged(data, seed) for seed in range(1000)), schedule, load, CheckpointError)
    assert found.total() == 1000
    assert found["refused"] > 980
    print(f"{found['refused']} refused, {found['loaded']} loaded")  # as docs/hard-use.md says


def test_a_schedule_with_strange_metadata(schedule: Path) -> None:
    original = schedule.read_bytes()
    copy = schedule.with_name("copy.safetensors")
    copy.write_bytes(original)
    places = len(list(walk(json.loads(metadata(copy)))))
    numbers = range(0, places * len(STRANGE), 3)

    def load(path: Path) -> None:
        learned = l3rs.load(path)
        assert list(describe(learners.load(path)))
        network = small_network()
        if all(name in dict(network.named_parameters()) for name in learned.layers):
            l3rs.L3RS(network.named_parameters(), 3, learned)

    found = outcomes((strange_metadata(copy, n) for n in numbers), schedule, load, CheckpointError)
    assert found["refused"] > found["loaded"] > 0
    for text in ("", "{", "[]", "7", "null", '"kind"', "[" * 100_000, '{"schema": 1}', '{"schema": {}}', "\ud83d"[:0] + "\x00"):
        schedule.write_bytes(with_metadata(copy, text))
        with pytest.raises(CheckpointError):
            learners.load(schedule)


def test_weights_of_another_learned_optimizer_damaged(tmp_path: Path) -> None:
    file, copy = tmp_path / "w.safetensors", tmp_path / "copy.safetensors"
    weights.starting_weights("celo2-base", 0.03, "mine", seed=0).write(copy)
    data = copy.read_bytes()

    def load(path: Path) -> None:
        learned = LearnedWeights.read(path)
        assert learned.theta.isfinite().all()
        assert learned.lr > 0
        assert list(describe(learned))

    found = outcomes((damaged(data, seed) for seed in range(300)), file, load, CheckpointError)
    assert found["refused"] > 200
    places = len(list(walk(json.loads(metadata(copy)))))
    found = outcomes((strange_metadata(copy, n) for n in range(places * len(STRANGE))), file, load, CheckpointError)
    assert found["refused"] > 40
    file.write_bytes(with_metadata(copy, "[" * 100_000))
    with pytest.raises(CheckpointError):
        LearnedWeights.read(file)


def test_a_saved_classifier_damaged(tmp_path: Path) -> None:
    file, copy = tmp_path / "model.safetensors", tmp_path / "copy.safetensors"
    about = Classifier("resnet18", 2, ("ant", "狐"), Transform(16, 18, 3, "bilinear", (0.5,) * 3, (0.25,) * 3), {"optimizer": "l3rs"})
    classifier.save(about, about.network().state_dict(), copy)
    data = copy.read_bytes()

    def load(path: Path) -> None:
        _, network = classifier.load(path)
        assert all(t.isfinite().all() for t in network.state_dict().values())

    found = outcomes((damaged(data, seed) for seed in range(25)), file, load, ClassifierError)
    assert found["refused"] > 12

    def read(path: Path) -> None:
        assert len(classifier.describe(path).classes) >= 2

    places = len(list(walk(json.loads(metadata(copy)))))
    found = outcomes((strange_metadata(copy, n) for n in range(places * len(STRANGE))), file, read, ClassifierError)
    assert found["refused"] > 100
    file.write_bytes(with_metadata(copy, "[" * 100_000))
    with pytest.raises(ClassifierError):
        classifier.load(file)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code was run",))


def test_weights_of_a_network_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {"a": torch.zeros(3, 4), "b": torch.ones(5)}
    save_file(tensors, tmp_path / "w.safetensors")
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    for name, data in (("w.safetensors", (tmp_path / "w.safetensors").read_bytes()), ("w.pt", buffer.getvalue())):
        found = outcomes((damaged(data, seed) for seed in range(200)), tmp_path / name, backbones.read_weights, backbones.WeightsError)
        assert found["refused"] > 60
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps({"a": Bomb()}))
    with pytest.raises(backbones.WeightsError):
        backbones.read_weights(tmp_path / "bomb.pt")
    for read in (l3rs.load, LearnedWeights.read, classifier.load):
        with pytest.raises(ValueError):
            read(tmp_path / "bomb.pt")  # type: ignore[operator]
    assert "code was run" not in capsys.readouterr().out


def test_a_class_split_damaged(tmp_path: Path) -> None:
    split = ClassSplit(
        "folder", 3, dict.fromkeys(PURPOSES, ()) | {"meta-train": ("ant", "bee"), "meta-test": ("cat",)}, "mine", {"ant": "狐"}
    )
    split.write(tmp_path / "split.json")
    data = (tmp_path / "split.json").read_bytes()
    found = outcomes((damaged(data, seed) for seed in range(500)), tmp_path / "split.json", ClassSplit.read, ValueError)
    assert found["refused"] > 300
    (tmp_path / "split.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is no class split"):
        ClassSplit.read(tmp_path / "split.json")
