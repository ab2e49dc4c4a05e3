"""Pretrained networks: weights from files that may be anything, and from a Hub that may be out of reach."""

from __future__ import annotations

import pickle
import socket
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from l3rs.networks.create import check_model, create, head_of, initialize
from l3rs.networks.pretrained import SHIPPED, WeightsError, from_hub, load, pretrained, put_into, read_weights, shipped_weights


@pytest.fixture
def network() -> nn.Module:
    return create("resnet18", 2, 3, 5)


def tensors(network: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in network.state_dict().items()}


# Files


def test_weights_are_read_from_safetensors_and_from_state_dicts(network: nn.Module, tmp_path: Path) -> None:
    state = tensors(network)
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "lightning.ckpt")
    for path in sorted(tmp_path.iterdir()):
        read = read_weights(path)
        assert read.keys() == state.keys()
        assert all(torch.equal(read[name], t) for name, t in state.items()), path.name


def test_floating_weights_are_read_in_single_precision(tmp_path: Path) -> None:
    state = {"half": torch.ones(2, dtype=torch.float16), "brain": torch.ones(2, dtype=torch.bfloat16), "count": torch.tensor(3)}
    save_file(state, tmp_path / "a.safetensors")
    assert [t.dtype for t in read_weights(tmp_path / "a.safetensors").values()].count(torch.float32) == 2
    assert read_weights(tmp_path / "a.safetensors")["count"].dtype == torch.int64


def garbage() -> dict[str, bytes]:
    return {
        "empty.pt": b"",
        "text.pt": b"these are no weights\n",
        "opcodes.pt": b"Q",
        "short.pt": b"BCDE",
        "zip.pt": b"PK\x03\x04 and no more",
        "list.pt": pickle.dumps([1, 2, 3]),
        "words.pt": pickle.dumps({"a": "b"}),
        "nested.pt": pickle.dumps({"state_dict": 5}),
        "line.pt": b"hi\n",
        "empty.safetensors": b"",
        "text.safetensors": b"these are no weights, and what comes first is no length",
        "pickle.safetensors": pickle.dumps({}),
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("name", garbage())
def test_a_file_without_weights_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(garbage()[name])
    with pytest.raises(WeightsError, match=f"^{tmp_path / name} holds no weights that can be read: .") as error:
        read_weights(tmp_path / name)
    assert "\n" not in str(error.value)
    assert any(letter.isalpha() for letter in str(error.value).rpartition(":")[2])  # not the bare number of a KeyError


def test_a_file_that_was_cut_is_named(network: nn.Module, tmp_path: Path) -> None:
    save_file(tensors(network), tmp_path / "a.safetensors")
    torch.save(tensors(network), tmp_path / "b.pt")
    for path in sorted(tmp_path.iterdir()):
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(WeightsError, match=f"^{path} holds no weights"):
            read_weights(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "no.pt", tmp_path):
        with pytest.raises(WeightsError, match=f"the weights {path} are not a file; give a safetensors file, or one of icons, glyphs"):
            read_weights(path)


class Code:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    data = pickle.dumps({"weight": Code(witness)}, protocol=2)
    (tmp_path / "plain.pt").write_bytes(data)
    torch.save({"weight": Code(witness)}, tmp_path / "zipped.pt")
    torch.save({"weight": Code(witness)}, tmp_path / "zipped.safetensors")
    for name in ("plain.pt", "zipped.pt", "zipped.safetensors"):
        with pytest.raises(WeightsError, match="holds no weights"):
            read_weights(tmp_path / name)
    assert not witness.exists()
    pickle.loads(data)
    assert witness.exists()  # it would have been


def test_a_file_that_unpacks_to_more_than_it_has_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as usual, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in usual.infolist():
            bomb.writestr(entry.filename, usual.read(entry))
    assert torch.equal(torch.load(tmp_path / "b.pt", weights_only=True)["w"], torch.zeros(100_000))  # torch itself unpacks it
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(WeightsError, match=r"b\.pt holds no weights that can be read: it unpacks to 400,[0-9]+ bytes, and has 1,[0-9]{3}$"):
        read_weights(tmp_path / "b.pt")


def test_tensors_that_take_more_than_the_file_are_refused(tmp_path: Path) -> None:
    whole = torch.zeros(1000, dtype=torch.float16)
    torch.save({"w": whole[:1].expand(10**6, 10**6)}, tmp_path / "expanded.pt")  # one number, for ever: 2 TB in memory
    torch.save({f"w{i}": whole for i in range(2000)}, tmp_path / "again.pt")
    for name in ("expanded", "again"):
        with pytest.raises(WeightsError, match=r"holds no weights that can be read: its tensors take [0-9,]+ bytes, and it has"):
            read_weights(tmp_path / f"{name}.pt")
    torch.save({"embedding": whole, "decoder": whole}, tmp_path / "tied.pt")
    assert read_weights(tmp_path / "tied.pt").keys() == {"embedding", "decoder"}


STRANGE = {
    "meta": lambda: torch.empty(3, device="meta"),
    "sparse": lambda: torch.sparse_coo_tensor(torch.zeros(2, 1), torch.ones(1), (10**9, 10**9)),
    "complex": lambda: torch.ones(2, dtype=torch.complex64),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
}


@pytest.mark.filterwarnings("ignore")  # of torch, that it will not have some of these for long
@pytest.mark.parametrize("kind", STRANGE)
def test_tensors_that_no_layer_can_take_are_named(kind: str, tmp_path: Path) -> None:
    torch.save({"w": STRANGE[kind]()}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="holds no weights that can be read: 'w' is no tensor of numbers in memory"):
        read_weights(tmp_path / "a.pt")


# Networks


def test_all_but_the_head_is_put_into_a_network(network: nn.Module) -> None:
    other = create("resnet18", 2, 3, 9)
    with torch.no_grad():
        for t in other.state_dict().values():
            t.copy_(torch.full_like(t, 7))
    head = tensors(network)
    put_into(network, tensors(other), "it")
    for name, t in network.state_dict().items():
        assert torch.equal(t, head[name] if name.startswith("fc.") else torch.full_like(t, 7)), name


def test_weights_without_a_head_will_do(network: nn.Module) -> None:
    put_into(network, {name: t for name, t in tensors(network).items() if not name.startswith("fc.")}, "it")


def test_weights_of_another_network_are_refused_and_the_first_difference_named(network: nn.Module) -> None:
    before = tensors(network)
    for weights, said in (
        (tensors(create("resnet18", 4, 3, 5)), r"for conv1\.weight they have \(4, 3, 7, 7\), and the network \(2, 3, 7, 7\)"),
        (tensors(create("resnet18", 2, 1, 5)), r"for conv1\.weight they have \(2, 1, 7, 7\), and the network \(2, 3, 7, 7\)"),
        (tensors(create("resnet34", 2, 3, 5)), r"for layer1\.2\.conv1\.weight they have \(2, 2, 3, 3\), and the network no such tensor"),
        ({}, r"for conv1\.weight they have no such tensor, and the network \(2, 3, 7, 7\)"),
        ({n: t for n, t in before.items() if n != "bn1.running_var"}, r"for bn1\.running_var they have no such tensor"),
        ({f"module.{n}": t for n, t in before.items()}, r"for conv1\.weight they have no such tensor"),
    ):
        with pytest.raises(WeightsError, match=f"^they are of another network: {said}"):
            put_into(network, weights, "they")
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def test_shipped_weights_are_found_by_name_and_files_by_path(tmp_path: Path) -> None:
    for name in SHIPPED:
        network = pretrained(4, head_seed=1, weights=name)
        assert torch.equal(network.conv1.weight, shipped_weights(name)["conv1.weight"])
        assert network.fc.weight.shape == (4, 128)
        torch.save(network.state_dict(), tmp_path / "copy.pt")
        assert torch.equal(pretrained(9, weights=tmp_path / "copy.pt").conv1.weight, network.conv1.weight)
    with pytest.raises(WeightsError, match="the shipped weights icons are of another network: for conv1"):
        load(create("resnet34", 8, 1, 4), "icons")


@pytest.mark.parametrize("model", ["resnet18", "mobilenetv3_small_050", "test_byobnet"])
def test_networks_of_timm_start_from_scratch_as_functions_of_the_seed(model: str) -> None:
    one, other = (timm.create_model(model, num_classes=3) for _ in range(2))
    other.to(memory_format=torch.channels_last)  # how it lies in memory makes no difference
    initialize(one, 4)
    initialize(other, 4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    weights = torch.cat([(m.weight.detach() * m.weight[0].numel() ** 0.5).flatten() for m in one.modules() if isinstance(m, nn.Conv2d)])
    assert float(weights.var()) == pytest.approx(1, abs=0.02)


SCRATCH = {  # the smallest of its kind in configs/zoo.yaml, and what has parameters of its own there
    "vit-icons": ("cls_token", "pos_embed"),
    "convnext-icons": ("stages.0.blocks.0.gamma",),
    "resmlp-glyphs": ("blocks.0.ls1", "blocks.0.norm1.alpha"),
    "swin-icons": ("layers.0.blocks.0.attn.relative_position_bias_table",),
}


@pytest.mark.parametrize("name", SCRATCH)
def test_networks_with_bare_parameters_start_from_scratch_as_timm_starts_them(name: str) -> None:
    listed = yaml.safe_load((Path(__file__).parents[2] / "configs" / "zoo.yaml").read_text())[name]

    def make() -> nn.Module:
        return create(listed["model"], None, 1, 3, listed["model_args"])

    one, other = make(), make()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)  # as after a task
    state = torch.get_rng_state()
    initialize(one, 4, make)
    initialize(other, 4, make)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    torch.manual_seed(4)
    timms = dict(make().named_parameters())
    assert all(torch.equal(one.get_parameter(bare), timms[bare]) for bare in SCRATCH[name])
    assert one(torch.zeros(2, 1, 32, 32)).isfinite().all()


def test_a_layer_that_is_not_known_to_start_from_scratch_is_named() -> None:
    with pytest.raises(ValueError, match=r"stages\.0\.blocks\.0 is a ConvNeXtBlock, and how to initialize one is not known here"):
        initialize(timm.create_model("convnext_atto"), 0)  # its layer scales


def test_models_that_timm_does_not_have_get_similar_names() -> None:
    with pytest.raises(ValueError, match=r"model is 'resnet_34', which timm [\w.]+ does not have; similar ones are .*resnet34"):
        check_model("resnet_34")
    for tag in ("nope", ""):
        with pytest.raises(ValueError, match=rf"model is 'resnet34\.{tag}': Invalid pretrained tag"):
            check_model(f"resnet34.{tag}")
    for elsewhere in ("hf-hub:me/mine", "local-dir:/tmp", "../resnet34", "resnet34\n"):
        with pytest.raises(ValueError, match=r"which timm .* does not have"):
            create(elsewhere)
        with pytest.raises(WeightsError, match="timm has no pretrained weights for"):
            from_hub(elsewhere, 3, 5)
    with pytest.raises(ValueError, match="width is 8, and the model is vgg11; only resnet18 and resnet34 come in any width"):
        create("vgg11", 8)


# The Hub


@pytest.fixture
def unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Hub at a port of this machine where nothing listens, and caches that are empty."""
    huggingface_hub.close_session()  # it may have read the environment before
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False  # again


@pytest.mark.usefixtures("unreachable")
def test_without_a_network_the_way_out_is_told_at_once() -> None:
    started = time.perf_counter()
    with pytest.raises(WeightsError, match=r"of resnet18 cannot be had from the Hub \(.+\); give --weights FILE, or --from-scratch"):
        from_hub("resnet18", 3, 5)
    assert time.perf_counter() - started < 10  # the Hub's client would try for most of a minute


@pytest.mark.usefixtures("unreachable")
def test_a_hub_that_answers_nonsense_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, said in (
        (TimeoutError(), "TimeoutError"),
        (RuntimeError("a\nb"), "a"),
        (ConnectionResetError("reset"), "reset"),
        (Exception("Bearer hf_" + "x" * 30), r"\*\*\*"),
    ):

        def broken(*args: object, error: Exception = error, **options: object) -> nn.Module:
            raise error

        monkeypatch.setattr(timm, "create_model", broken)
        with pytest.raises(WeightsError, match=rf"from the Hub \({said}\); give --weights FILE"):
            from_hub("resnet18", 3, 5)


def test_models_without_pretrained_weights_are_named() -> None:
    model = next(m for m in timm.list_models() if not getattr(timm.get_pretrained_cfg(m), "has_weights", False))
    with pytest.raises(WeightsError, match=f"timm has no pretrained weights for {model}; give --weights FILE, or --from-scratch"):
        from_hub(model, 3, 5)


@pytest.mark.usefixtures("unreachable")
def test_weights_that_are_in_the_cache_are_taken_from_there(tmp_path: Path) -> None:
    """What huggingface_hub has downloaded before, as it lays it out."""
    model = timm.create_model("test_resnet", num_classes=1000)
    repository = timm.get_pretrained_cfg("test_resnet").hf_hub_id
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(model.state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors")
    network = from_hub("test_resnet", 3, 7)
    assert torch.equal(next(network.parameters()), next(model.parameters()))
    assert head_of(network).out_features == 7
