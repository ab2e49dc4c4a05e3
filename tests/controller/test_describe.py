"""What layers are, told from names and shapes, on networks of many families; and their sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import timm
import torch
from conftest import small_network
from torch import nn

from l3rs.controller.config import ANY_NETWORK
from l3rs.controller.describe import KINDS, NUMBERS, describe, layer_table
from l3rs.controller.layer_sizes import Sizes
from l3rs.finetuning.workbench import workbench
from l3rs.finetuning.workload import Workload
from l3rs.networks.create import head_of

COUNTS = {
    "resnet18": {"kernel": 20, "scale": 20, "shift": 20},
    "mobilenetv3_small_050": {"kernel": 42, "depthwise": 11, "bias": 19, "scale": 34, "shift": 34},
    "vit_tiny_patch16_224": {"embedding": 2, "kernel": 1, "attention": 24, "dense": 24, "bias": 49, "scale": 25, "shift": 25},
    "convnext_atto": {"kernel": 28, "depthwise": 12, "bias": 40, "scale": 29, "shift": 17},
    "densenet121": {"kernel": 120, "scale": 121, "shift": 121},
    "mixer_s32_224": {"kernel": 1, "dense": 32, "bias": 33, "scale": 17, "shift": 17},
}


def shapes_and_names(model: str) -> tuple[list[torch.Size], list[str]]:
    with torch.device("meta"):
        named = list(timm.create_model(model, num_classes=25).named_parameters())
    return [p.shape for _, p in named], [name for name, _ in named]


def kinds_of(network: nn.Module) -> dict[str, str]:
    named = dict(network.named_parameters())
    return dict(zip(named, layer_table([p.shape for p in named.values()], list(named)).kinds, strict=True))


def test_a_module_that_is_called_an_embedding_may_hold_a_whole_network() -> None:
    network = nn.ModuleDict({"embedder": small_network(), "embedding": nn.Embedding(5, 3), "fc": nn.Linear(3, 2)})
    plain = {f"embedder.{name}": kind for name, kind in kinds_of(small_network()).items()}
    found = kinds_of(network)
    assert found["embedding.weight"] == "embedding"
    assert [found[name] for name in plain if "head" not in plain[name]] == [kind for kind in plain.values() if "head" not in kind]


def test_biases_belong_to_their_weights_whatever_they_are_called() -> None:
    """As BEiT, EVA and Swin v2 call those of their attention, and torch those of its recurrent layers."""
    names = ["attn.q_bias", "attn.v_bias", "attn.qkv.weight", "own.k_bias", "own.k_proj.weight", "fc.weight"]
    table = layer_table([(8,), (8,), (24, 8), (8,), (8, 8), (5, 8)], names)
    assert table.kinds == ("bias", "bias", "attention", "bias", "dense", "head")
    assert table.sized_by == (2, 2, 2, 4, 4, 5)
    recurrent = nn.ModuleDict({"lstm": nn.LSTM(4, 3, bidirectional=True), "cell": nn.GRUCell(4, 3), "fc": nn.Linear(3, 2)})
    named = dict(recurrent.named_parameters())
    table = layer_table([p.shape for p in named.values()], names := list(named))
    for name, of in zip(names, table.sized_by, strict=True):
        assert names[of] == name.replace("bias", "weight")
    mixed = nn.ModuleDict({"att": nn.MultiheadAttention(8, 2, kdim=4, vdim=4), "fc": nn.Linear(8, 2)})
    assert kinds_of(mixed)["att.in_proj_bias"] == "bias"


def test_a_number_for_each_channel_is_a_scale_whatever_its_axes() -> None:
    names = ["conv.weight", "conv.gain", "attn.temperature", "gamma", "aggregate.weight", "one.weight", "fc.weight"]
    shapes = [(8, 3, 3, 3), (8, 1, 1, 1), (4, 1, 1), (8, 1, 1), (1, 8, 2), (4, 1), (5, 8)]
    table = layer_table(shapes, names)
    assert table.kinds == ("kernel", "scale", "scale", "scale", "other", "dense", "head")
    assert table.fan_in == (27, 1, 1, 1, 16, 1, 8)
    assert table.depth[0] == 0.5 / 4  # of four matrices
    conv, dense = (nn.utils.parametrizations.weight_norm(layer) for layer in (nn.Conv2d(3, 4, 3), nn.Linear(4, 4)))
    found = kinds_of(nn.Sequential(conv, dense, nn.Linear(4, 2)))
    assert [found[f"{i}.parametrizations.weight.original0"] for i in range(2)] == ["scale", "scale"]


def test_kernels_of_one_axis_are_no_embeddings() -> None:
    convolutions = [nn.Conv1d(8, 8, 1), nn.Conv1d(1, 8, 3), nn.Conv1d(8, 8, 3, groups=8), nn.Linear(3, 2)]
    assert [kind for name, kind in kinds_of(nn.Sequential(*convolutions)).items() if name.endswith("weight")] == ["other"] * 3 + ["head"]
    assert layer_table([(1, 5, 8), (4, 8)], ["tokens", "head.weight"]).kinds == ("embedding", "head")


@pytest.mark.parametrize(
    "parametrized", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm]
)
def test_a_bias_belongs_to_weights_that_are_parametrized(parametrized: Callable[[nn.Module], nn.Module]) -> None:
    found = kinds_of(nn.ModuleDict({"conv": parametrized(nn.Conv2d(3, 4, 3)), "fc": parametrized(nn.Linear(4, 2))}))
    assert found["conv.bias"] == "bias"
    assert found["fc.bias"] == "head's bias"


@pytest.mark.parametrize("model", COUNTS)
def test_kinds_of_known_families(model: str) -> None:
    shapes, names = shapes_and_names(model)
    table = layer_table(shapes, names)
    assert Counter(table.kinds) == {**COUNTS[model], "head": 1, "head's bias": 1}
    weights, bias = table.head
    assert weights is not None
    assert bias is not None
    assert names[weights].endswith("weight")
    assert names[bias] == names[weights].replace("weight", "bias")
    assert table.classes == 25
    for i, of in enumerate(table.sized_by):  # a bias has its kernel's size, a shift its scale's, all others their own
        suffix = names[i].rpartition(".")[2]
        assert names[of] == (names[i].removesuffix("bias") + "weight" if suffix == "bias" else names[i])


@pytest.mark.parametrize("model", ["resnet18", "vit_tiny_patch16_224", "densenet121", "mixer_s32_224"])
def test_without_names_vectors_find_the_same_layers(model: str) -> None:
    shapes, names = shapes_and_names(model)
    with_names, without = layer_table(shapes, names), layer_table(shapes)
    assert without.sized_by == with_names.sized_by
    assert without.head == with_names.head


def test_two_groups_of_decay_and_no_decay_leave_every_layer_what_it_was() -> None:
    shapes, names = shapes_and_names("resnet18")
    order = sorted(range(len(shapes)), key=lambda i: len(shapes[i]) > 1)
    one, two = layer_table(shapes, names), layer_table([shapes[i] for i in order], [names[i] for i in order])
    torch.testing.assert_close(describe(two, [shapes[i] for i in order], 4.0), describe(one, shapes, 4.0)[order])


def test_the_head_is_found_by_name_where_it_comes_first() -> None:
    table = layer_table([(5, 8), (5,), (8, 8), (8,)], ["head.weight", "head.bias", "body.0.weight", "body.0.bias"])
    assert table.kinds == ("head", "head's bias", "dense", "bias")


@pytest.mark.parametrize(
    ("modules", "head"),
    [
        (["conv", "layer.0.output.dense", "layer.1.output.dense", "linear"], 3),  # a backbone of Hugging Face, and a head of one's own
        (["conv", "layer.0.output.dense", "layer.1.output.dense", "classifier"], 3),
        (["0.conv", "1.fc"], 1),  # a network behind a module that normalizes
        (["features.0", "classifier.0", "classifier.3", "aside"], 2),
        (["layer.0.heads.0", "head.fc", "decoder.0.fc"], 1),
    ],
)
def test_the_head_is_none_of_the_parts_of_numbered_blocks(modules: list[str], head: int) -> None:
    table = layer_table([(4, 4)] * len(modules), [f"{name}.weight" for name in modules])
    assert table.kinds.index("head") == head
    assert table.kinds.count("head") == 1


def blocks(called: str, *parts: str) -> list[str]:
    """The names of two blocks."""
    return [f"{called.format(i)}.{part}.weight" for i in (0, 1) for part in parts]


@pytest.mark.parametrize("stack", ["attn_layers.{}", "encoder.attn_layers.layers.{}.1"])
def test_a_stack_of_attentions_is_called_so(stack: str) -> None:
    names = [f"{stack.format(i)}.{part}.weight" for i in range(12) for part in ("to_q", "to_k", "to_v", "to_out.0")]
    assert layer_table([(4, 4)] * 49, [*names, "fc.weight"]).kinds == ("attention",) * 48 + ("head",)


@pytest.mark.parametrize("wrapper", ["attention_net", "attn.model", "qkv"])
def test_a_network_is_not_an_attention_whatever_it_is_called(wrapper: str) -> None:
    for model in ("resnet18", "vit_tiny_patch16_224"):
        shapes, names = shapes_and_names(model)
        wrapped = layer_table(shapes, [f"{wrapper}.{name}" for name in names])
        assert wrapped == layer_table(shapes, names)
        beside = layer_table([*shapes, (4, 4)], [*(f"{wrapper}.{name}" for name in names), "aside.weight"])
        assert beside.kinds[:-1] == wrapped.kinds
    assert layer_table([(12, 4), (4, 4), (3, 4)], ["attn.qkv.weight", "attn.proj.weight", "fc.weight"]).kinds[:2] == ("attention",) * 2


@pytest.mark.parametrize(
    ("names", "head"),
    [
        (blocks("blocks.{}", "qkv", "fc1", "fc2"), None),  # a backbone alone: its head is elsewhere
        (blocks("encoder.layer.{}", "intermediate.dense", "output.dense", "query"), None),
        (blocks("encoder.layer.{}", "query", "intermediate.dense", "output.dense"), None),
        ([*blocks("enc.blocks.{}.mlp", "fc1", "gate", "fc2"), "out.weight"], "out"),
        (["0.weight", "2.weight"], "2"),
        (["net.0.weight", "net.2.weight"], "net.2"),
        (["0.body.weight", "1.linear.weight"], "1.linear"),
        (["body.weight", "exits.0.linear.weight", "exits.1.linear.weight"], "exits.1.linear"),
        (blocks("members.{}", "body", "out"), "members.1.out"),
        (["0.0.weight", "1.0.weight", "2.0.weight"], "2.0"),
    ],
)
def test_a_part_of_the_last_of_several_blocks_is_no_head(names: list[str], head: str | None) -> None:
    place = layer_table([(4, 4)] * len(names), names).head[0]
    assert (None if place is None else names[place].removesuffix(".weight")) == head


def test_the_head_may_be_named() -> None:
    shapes, names = [(8, 4), (8,), (3, 8), (3,)], ["backbone.fc.weight", "backbone.fc.bias", "out.weight", "out.bias"]
    assert layer_table(shapes, names).head == (0, 1)
    named = layer_table(shapes, names, "out")
    assert (named.head, named.classes, named.kinds[:2]) == ((2, 3), 3, ("dense", "bias"))
    assert layer_table(shapes, names, "").head == (None, None)
    assert layer_table(shapes, [f"_orig_mod.{name}" for name in names], "out") == named
    with pytest.raises(ValueError, match=r"head must be the name of one dense layer \(got 'output'\); the last ones are backbone.fc, out"):
        layer_table(shapes, names, "output")
    with pytest.raises(ValueError, match=r"the parameters have no names \(got 'out'\): give model\.named_parameters\(\)"):
        layer_table(shapes, None, "out")
    with pytest.raises(ValueError, match=r"the name of one dense layer \(got 'fc'\)"):
        layer_table([(3, 3)] * 2, ["a.fc.weight", "b.fc.weight"], "fc")


def test_a_network_without_matrices_has_no_head() -> None:
    table = layer_table([(3,), (3,)])
    assert table.kinds == ("scale", "shift")
    assert table.head == (None, None)
    assert describe(table, [(3,), (3,)], 4.0).shape == (2, len(KINDS) + len(NUMBERS))
    assert layer_table([]).kinds == ()


def test_sizes_are_norms_and_the_heads_moves_logits_by_one() -> None:
    """A step of this length along the gradient of one image moves its logits by sqrt(classes) in norm: by 1 each, if all alike."""
    torch.manual_seed(0)
    head, features = nn.Linear(6, 3), torch.randn(1, 6)
    nn.functional.cross_entropy(head(features), torch.tensor([1])).backward()
    grads = torch.stack([p.grad.norm() for p in head.parameters() if p.grad is not None])
    weights = torch.stack([p.detach().norm() for p in head.parameters()])
    table = layer_table([p.shape for p in head.parameters()], ["weight", "bias"])
    sizes = Sizes(table, [18, 3], [0, 1], lambda i: float("nan"), ANY_NETWORK, weights)
    found = sizes(weights, grads)
    moved = found[0] * head.weight.grad / grads[0] @ features[0]  # type: ignore[operator]
    torch.testing.assert_close(moved.norm(), torch.tensor(3.0).sqrt())
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("weights", ["icons", "glyphs"])
def test_the_gradients_of_a_head_tell_the_norm_of_its_inputs(weights: str) -> None:
    """Within a quarter of the mean norm, on batches of 64 images of 25 new classes."""
    bench = workbench(Workload(weights=weights))
    tasks = bench.tasks("meta-validation")
    for seed in range(4):
        task = tasks.draw(seed, 1)
        network = bench.network_for(task.head_seed)
        head, inputs = head_of(network), list[torch.Tensor]()
        hook = head.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))  # noqa: B023  (called in this turn)
        images, labels = task.batch(tasks.images, 0)
        nn.functional.cross_entropy(network(images), labels).backward()
        hook.remove()
        of_weights, of_bias = (p.grad.norm().item() for p in head.parameters() if p.grad is not None)
        assert of_weights / of_bias == pytest.approx(inputs[0].norm(dim=1).mean().item(), rel=0.25)


def test_sizes_of_layers_that_rest_are_asked_for() -> None:
    network = small_network()
    named = dict(network.named_parameters())
    table = layer_table([p.shape for p in named.values()], list(named))
    asked: list[int] = []
    places = [i for i, name in enumerate(named) if name.endswith("bias")]
    like = torch.ones(len(places))
    Sizes(table, [p.numel() for p in named.values()], places, lambda i: asked.append(i) or 7.0, ANY_NETWORK, like)  # type: ignore[func-returns-value]
    assert asked == [table.sized_by[i] for i in places]


def test_a_head_whose_bias_has_no_gradient_does_not_stand_still() -> None:
    """Two balanced classes and a head of zeros: the bias's gradient is zero, and the size its least."""
    table = layer_table([(2, 9), (2,)], ["head.weight", "head.bias"])
    sizes = Sizes(table, [18, 2], [0, 1], lambda i: float("nan"), ANY_NETWORK, torch.zeros(2))
    found = sizes(torch.zeros(2), torch.tensor([0.3, 0.0]))
    torch.testing.assert_close(found[0], torch.tensor(2.0).sqrt() / (ANY_NETWORK.feature_rms_cap * 3))
