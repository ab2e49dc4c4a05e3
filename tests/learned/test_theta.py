"""The files that meta-parameters are published in: each layout is read as it was written, and each broken file is refused by its name."""

from __future__ import annotations

import copy
import io
import pickle
import random as dice
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from conftest import batch, small_network
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from l3rs.learned import Celo, Celo2, VeLO
from l3rs.learned.accumulators import WIDTHS
from l3rs.learned.celo2 import SHAPES
from l3rs.learned.theta import MODULE, Shapes, count, flatten, mlp, random, read, unflatten
from l3rs.schedules.seal import CheckpointError

Tree = dict[str, Any]


@cache
def vector(kind: str) -> Tensor:
    """No biases of zero, so that none can be mixed up."""
    theta = random(shapes_of(kind), 0)
    return theta + 0.01 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(1))


def shapes_of(kind: str) -> Shapes:
    return {"celo2": SHAPES, "velo": VeLO.FORM.shapes, "celo": Celo.FORM.shapes}[kind]


def named(kind: str = "celo2") -> dict[str, Tensor]:
    return unflatten(vector(kind), shapes_of(kind))


# -- files as they are published -----------------------------------------------------------------------------------------------------


def array(t: Tensor, dtype: str = "float32", code: int = 1) -> msgpack.ExtType:
    a = t.numpy().astype(dtype)
    return msgpack.ExtType(code, msgpack.packb((a.shape, a.dtype.name, a.tobytes("C")), use_bin_type=True))


def nested(theta: dict[str, Tensor]) -> Tree:
    """A dict for each part of a name."""
    tree: Tree = {}
    for name, t in theta.items():
        *path, leaf = name.split("/")
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at[leaf] = array(t)
    return tree


def haiku(theta: dict[str, Tensor]) -> Tree:
    """A dict for each module, whose name has slashes."""
    tree: Tree = {}
    for name, t in theta.items():
        module, _, leaf = name.rpartition("/")
        tree.setdefault(module, {})[leaf] = array(t)
    return tree


def write(path: Path, tree: object) -> Path:
    path.write_bytes(msgpack.packb(tree, use_bin_type=True))
    return path


def write_nested(folder: Path, kind: str) -> list[Path]:
    return [write(folder / "theta.state", nested(named(kind)))]


def write_haiku(folder: Path, kind: str) -> list[Path]:
    return [write(folder / "theta.state", haiku(named(kind)))]


def write_npz(folder: Path, kind: str) -> list[Path]:
    np.savez(folder / "theta.npz", **{name: t.numpy() for name, t in named(kind).items()})
    return [folder / "theta.npz"]


def write_safetensors(folder: Path, kind: str) -> list[Path]:
    save_file({name: t.clone() for name, t in named(kind).items()}, folder / "theta.safetensors")
    return [folder / "theta.safetensors"]


def pylo_celo2() -> dict[str, Tensor]:
    theta = named("celo2")
    pylo = {f"w0.{i}": theta[f"{MODULE}w0__{i}"] for i in range(len(WIDTHS))} | {"b0": theta[MODULE + "b0"]}
    pylo |= {f"dense_{kind}.{i}": theta[f"{MODULE}{kind}{i + 1}"] for kind in "wb" for i in range(2)}
    return {name: t.clone() for name, t in pylo.items()}


def pylo_velo() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    theta = named("velo")
    layers = {"mix_layer1": "linear", "mix_layer2": "linear_1", "final_mix_layer": "linear_2", "lstm.linear": "rnn/linear"}
    layers |= {"rnn_to_controls": "rnn_to_controls", "step_size": "step_size"}
    rnn = {f"{ours}.weight": theta[f"rnn_params/{theirs}/w"].T for ours, theirs in layers.items()}
    rnn |= {f"{ours}.bias": theta[f"rnn_params/{theirs}/b"] for ours, theirs in layers.items()}
    rnn |= {f"lstm_init_state.{i}": theta[f"lstm_init_state/{name}"] for i, name in enumerate(("hidden", "cell"))}
    stack = mlp(theta)
    pairs = {"input_weights": stack.w0, "hidden_weights_.0": stack.w1, "output_weights": stack.w2}
    network = {name if name[-1] == "0" else f"{name}_": w.transpose(1, 2) for name, w in pairs.items()}
    network |= {"input_bias_": stack.b0, "hidden_bias_.0": stack.b1, "output_bias_": stack.b2}
    leftovers = {"input_weights": (4, 30), "input_bias": (4,), "hidden_weights.0": (4, 4), "hidden_bias.0": (4,)}
    leftovers |= {"output_weights": (3, 4), "output_bias": (3,)}
    network |= {name: torch.full(shape, 9.0) for name, shape in leftovers.items()}
    return tuple({name: t.contiguous().clone() for name, t in part.items()} for part in (rnn, network))  # type: ignore[return-value]


def write_pylo(folder: Path, kind: str) -> list[Path]:
    parts = [pylo_celo2()] if kind == "celo2" else pylo_velo()
    paths = [folder / f"{i}.safetensors" for i in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        save_file(part, path)
    return paths


def test_the_layout_of_pylo_is_the_one_of_its_files() -> None:
    rnn, network = pylo_velo()
    shapes = {name: tuple(t.shape) for name, t in (rnn | network).items()}
    assert shapes["mix_layer1.weight"] == (512, 30)
    assert shapes["lstm.linear.weight"] == (2048, 1024)
    assert shapes["input_weights_"] == (256, 4, 30)
    assert shapes["output_weights_"] == (256, 3, 4)


LAYOUTS = [(write_nested, "celo2"), (write_haiku, "celo2"), (write_npz, "celo2"), (write_safetensors, "celo2"), (write_pylo, "celo2")]
LAYOUTS += [(write_haiku, "celo"), (write_nested, "velo"), (write_pylo, "velo")]


@pytest.mark.parametrize(("layout", "kind"), LAYOUTS)
def test_a_published_file_is_the_vector_that_it_was_made_from(layout: Callable[..., list[Path]], kind: str, tmp_path: Path) -> None:
    paths = layout(tmp_path, kind)
    assert torch.equal(read(shapes_of(kind), *paths), vector(kind))
    after = []
    for theta in (vector(kind), paths if len(paths) > 1 else str(paths[0])):
        network = small_network()
        params = network.parameters()
        optimizer = Celo2(params, theta) if kind == "celo2" else {"velo": VeLO, "celo": Celo}[kind](params, theta, 9)
        for k in range(2):
            inputs, labels = batch(k)
            network.zero_grad()
            loss = F.cross_entropy(network(inputs), labels)
            loss.backward()
            optimizer.step(loss=loss)
        after.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(*after)
    assert not torch.equal(after[0], torch.cat([p.detach().flatten() for p in small_network().parameters()]))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_arrays_of_other_floating_types_are_read(dtype: str, tmp_path: Path) -> None:
    tree = haiku(named())
    tree[MODULE[:-1]]["w1"] = array(named()[f"{MODULE}w1"], dtype, code=1)
    read_back = unflatten(read(SHAPES, write(tmp_path / "theta.state", tree)), SHAPES)
    assert torch.equal(read_back[f"{MODULE}w1"], named()[f"{MODULE}w1"].to(getattr(torch, dtype)).float())


# -- files that are not ------------------------------------------------------------------------------------------------------------


def spoiled(name: str, value: object) -> bytes:
    tree = haiku(named())
    tree[MODULE[:-1]][name] = value
    return bytes(msgpack.packb(tree))


def lacking(name: str) -> bytes:
    tree = haiku(named())
    del tree[MODULE[:-1]][name]
    return bytes(msgpack.packb(tree))


def deep(levels: int) -> bytes:
    return b"\x81\xa1a" * levels + b"\x80"


def ext(*content: object) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb(content))


whole = bytes(msgpack.packb(haiku(named())))
BAD = {
    "truncated": (whole[:-7], "cannot be read .*truncated"),
    "cut in half": (whole[: len(whole) // 2], "cannot be read .*truncated"),
    "garbage": (bytes(range(255, 0, -1)) * 20, "cannot be read"),
    "empty": (b"", "cannot be read"),
    "with more behind": (whole + b"\x00", "cannot be read .*ExtraData"),
    "lacking": (lacking("b1"), r"lacks ff_mod_stack/~/b1 \(1 names are missing, 0 unknown\)"),
    "extra": (spoiled("b3", array(torch.zeros(3))), r"holds ff_mod_stack/~/b3, which is not of this optimizer \(0 names are missing, 1 "),
    "shape": (spoiled("w1", array(torch.zeros(8, 4))), r"holds ff_mod_stack/~/w1 of shape \(8, 4\), not \(8, 8\)"),
    "nan": (spoiled("b2", array(torch.tensor([0.0, float("nan"), 0.0]))), "holds ff_mod_stack/~/b2 with numbers that are not finite"),
    "too large": (spoiled("b2", array(torch.full((3,), 1e300, dtype=torch.float64), "float64")), "b2 with numbers that are not finite"),
    "integers": (spoiled("b2", array(torch.zeros(3), "int32")), "an array of int32; floating ones are read"),
    "other type": (spoiled("b2", msgpack.ExtType(7, b"abc")), "an object of type 7"),
    "number": (spoiled("b2", 1.5), "ff_mod_stack/~/b2 is float, not an array"),
    "list": (bytes(msgpack.packb([1, 2])), "there is list, not names and arrays"),
    "nothing in it": (b"\x80", r"lacks ff_mod_stack/~/w0__0 \(19 names are missing, 0 unknown\)"),
    "pickle": (pickle.dumps({"a": 1}), "cannot be read"),
    "deep": (deep(900), "cannot be read|is not of this optimizer|lacks"),
    "deeper": (deep(100000), "cannot be read"),
    "length": (spoiled("b2", ext([3], "float32", b"\0" * 8)), "cannot be read .*truncated"),
    "huge length": (spoiled("b2", ext([2**64 - 1], "float32", b"\0" * 12)), "cannot be read"),
    "array of two": (spoiled("b2", ext([3], "float32")), "cannot be read"),
    "names of two kinds": (bytes(msgpack.packb({1: array(torch.zeros(3))})), "lacks"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_broken_flax_file_is_named_with_what_is_wrong(kind: str, tmp_path: Path) -> None:
    content, message = BAD[kind]
    path = tmp_path / "broken.state"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"broken\.state.*({message})"):
        read(SHAPES, path)


@pytest.mark.parametrize("suffix", ["state", "npz", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00", whole[:40], b"PK\x03\x04" + bytes(60), b"\x93NUMPY\x01\x00", pickle.dumps([1])])
def test_bytes_of_no_format_are_refused_whatever_the_file_is_called(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"broken\.{suffix} cannot be read|broken\.{suffix}: there is int"):
        read(SHAPES, path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.state", tmp_path):
        with pytest.raises(CheckpointError, match=f"{path} is not a file"):
            Celo2(small_network().parameters(), path)


TENSORS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "lacking": (lambda t: t.pop(f"{MODULE}b1"), "lacks ff_mod_stack/~/b1"),
    "extra": (lambda t: t.update(other=torch.zeros(1)), "holds other, which is not"),
    "shape": (lambda t: t.update({f"{MODULE}b1": torch.zeros(1, 8)}), r"b1 of shape \(1, 8\), not \(8,\)"),
    "infinite": (lambda t: t.update({f"{MODULE}b1": torch.full((8,), float("inf"))}), "b1 with numbers that are not finite"),
    "integers": (lambda t: t.update({f"{MODULE}b1": torch.ones(8, dtype=torch.int64)}), r"b1 of torch\.int64; floating ones are read"),
    "complex": (lambda t: t.update({f"{MODULE}b1": torch.ones(8, dtype=torch.complex64)}), "b1 of torch.complex64; floating ones"),
}


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_other_tensors_than_the_optimizers_are_named(suffix: str, kind: str, tmp_path: Path) -> None:
    change, message = TENSORS[kind]
    tensors = {name: t.clone() for name, t in named().items()}
    change(tensors)
    path = tmp_path / f"other.{suffix}"
    if suffix == "npz":
        np.savez(path, **{name: t.numpy() for name, t in tensors.items()})
    else:
        save_file(tensors, path)
    with pytest.raises(CheckpointError, match=rf"other\.{suffix}.*{message}"):
        read(SHAPES, path)


def test_tensors_of_pylo_of_another_shape_are_named(tmp_path: Path) -> None:
    rnn, network = pylo_velo()
    rnn_file, file = tmp_path / "rnn.safetensors", tmp_path / "network.safetensors"
    save_file(rnn, rnn_file)
    changes = {
        "input_weights_": (torch.zeros(256, 4, 29), r"network\.safetensors: input_weights_ has shape \(256, 4, 29\)"),
        "hidden_weights_.0": (torch.zeros(4, 4), r"w1 of shape \(4, 4\), not \(256, 4, 4\)"),
        "output_bias_": (torch.zeros(3), r"b2 of shape \(3,\), not \(256, 3\)"),
    }
    for name, (t, message) in changes.items():
        save_file(network | {name: t}, file)
        with pytest.raises(CheckpointError, match=message):
            read(VeLO.FORM.shapes, rnn_file, file)
    save_file(network, file)
    save_file(rnn | {"step_size.weight": torch.zeros(512)}, rnn_file)
    with pytest.raises(CheckpointError, match=r"rnn_params/step_size/w of shape \(512,\), not \(512, 1\)"):
        read(VeLO.FORM.shapes, rnn_file, file)
    with pytest.raises(CheckpointError, match=r"network\.safetensors lacks lstm_init_state/hidden \(14 names are missing"):
        read(VeLO.FORM.shapes, file)


@pytest.mark.parametrize("shape", [(250_000_000,), (10**12,), (2**62, 2**62)])
@pytest.mark.parametrize("name", ["b2", "other"])
def test_an_array_that_unpacks_to_gigabytes_is_refused_by_its_header(shape: tuple[int, ...], name: str, tmp_path: Path) -> None:
    tensors = {n: t.numpy() for n, t in named().items()}
    tensors.pop(MODULE + name, None)
    np.savez(tmp_path / "bomb.npz", **tensors)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{MODULE}{name}.npy", header.getvalue() + bytes(80_000_000))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=rf"bomb\.npz (holds|cannot be read).*({name}|overflow)"):
        read(SHAPES, tmp_path / "bomb.npz")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20e6


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return pytest.fail, ("a file was unpickled",)


@pytest.mark.parametrize("kind", ["objects in npz", "npz", "state", "safetensors"])
def test_a_file_is_never_unpickled(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"bomb.{kind.split()[-1]}"
    if kind == "objects in npz":
        np.savez(path, **{name: t.numpy() for name, t in named().items()} | {"b": np.array([Bomb()], dtype=object)})
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=rf"bomb\.{path.suffix[1:]} cannot be read"):
        read(SHAPES, path)


@pytest.mark.parametrize("layout", [write_haiku, write_safetensors, write_npz])
def test_a_damaged_file_is_read_whole_or_refused(layout: Callable[..., list[Path]], tmp_path: Path) -> None:
    (path,) = layout(tmp_path, "celo2")
    good, rng = path.read_bytes(), dice.Random(0)
    messages = []
    for i in range(300):
        content = bytearray(good)
        if i % 3 == 0:
            content = content[: rng.randrange(len(good))]
        else:
            early = len(good) if i % 3 == 1 else 600  # more of them in names and headers
            for _ in range(rng.randint(1, 4)):
                content[rng.randrange(early)] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            theta = read(SHAPES, path)
        except CheckpointError as error:
            messages.append(str(error))
        else:
            assert theta.shape == (count(SHAPES),)
            assert theta.isfinite().all()
    assert all(path.name in message for message in messages)
    assert 100 <= len(messages) < 300 + (layout is write_npz)  # the truncated ones at least; npz has checksums


# -- vectors -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["celo2", "celo"])
def test_random_weights_have_the_deviation_of_their_inputs_and_biases_are_zero(kind: str) -> None:
    shapes = shapes_of(kind)
    theta = unflatten(random(shapes, 3), shapes)
    assert torch.equal(random(shapes, 3), random(shapes, 3))
    assert not torch.equal(random(shapes, 3), random(shapes, 4))
    for name, t in theta.items():
        leaf = name.rpartition("/")[2]
        if not leaf.startswith("w"):
            assert not t.any(), name
            continue
        inputs = 30 if leaf.startswith("w0__") else t.shape[-2]
        assert t.abs().max() <= 2 * inputs**-0.5, name
        if t.numel() > 500:  # cut off at two standard deviations: 0.88 of them are left
            assert t.std().item() == pytest.approx(0.88 * inputs**-0.5, rel=0.1), name
    first = torch.cat([theta[f"{MODULE}w0__{i}"].flatten() for i in range(len(WIDTHS))])
    assert first.std().item() == pytest.approx(0.88 * 30**-0.5, rel=0.2)


def test_a_flat_vector_and_its_names_are_one_to_one() -> None:
    flat = torch.arange(count(SHAPES), dtype=torch.float32)
    theta = unflatten(flat, SHAPES)
    assert {name: tuple(t.shape) for name, t in theta.items()} == SHAPES
    assert torch.equal(flatten(dict(reversed(theta.items())), SHAPES), flat)
    starts = [t.flatten()[0].item() for t in theta.values()]
    assert all(a < b for a, b in pairwise(starts))


@pytest.mark.parametrize("flat", [torch.zeros(count(SHAPES) - 1), torch.zeros(0), torch.zeros(1, count(SHAPES))])
def test_a_vector_of_another_length_is_refused(flat: Tensor) -> None:
    message = f"theta has shape {tuple(flat.shape)}; there are ({count(SHAPES)},) meta-parameters"
    with pytest.raises(ValueError, match=re.escape(message)):
        Celo2(small_network().parameters(), flat)


def test_the_vector_stays_as_it_is() -> None:
    flat = vector("celo2").double()
    before = copy.deepcopy(flat)
    network = small_network()
    optimizer = Celo2(network.parameters(), flat)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(flat, before)
