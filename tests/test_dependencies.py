"""What `pip install l3rs` brings is enough to fine-tune with a learned schedule; what needs more names the extra that brings it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_tree
from environments import PROJECT, ROOT, build, linked, python, run
from packaging.requirements import Requirement

from l3rs.extras import APART, EXTRAS, require, what_to_install

CORE = {"torch", "numpy", "safetensors", "huggingface_hub", "filelock"}
IMPORTED_AS = {"pillow": "PIL", "pytorch-lightning": "pytorch_lightning", "PyYAML": "yaml"}
NOT_ASKED_FOR = {"ray": "comes with EvoTorch", "triton": "comes with torch for CUDA"}
HEAVY = {name for libraries in EXTRAS.values() for name in libraries} - {"tqdm"}  # which torch imports where it is there
OF_IMAGES = {*EXTRAS["images"], "huggingface_hub"}  # which timm imports

# A whole fine-tuning, as docs have it: the shipped schedule moves the layers, and a run that is saved goes on as if it had not been.
FINE_TUNING = """
import copy, torch, l3rs
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 3))
images, labels = torch.randn(64, 1, 8, 8), torch.arange(64) % 3
optimizer = l3rs.L3RS(model.named_parameters(), total_steps=30, learned=l3rs.load("icons-generalist"))
losses = []
for step in range(30):
    if step == 15:
        state, model = optimizer.state_dict(), copy.deepcopy(model)
        optimizer = l3rs.L3RS(model.named_parameters(), total_steps=30, learned=optimizer.learned)
        optimizer.load_state_dict(state)
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(loss=loss)
    losses.append(loss.item())
assert losses[-1] < 0.5 * losses[0], losses
l3rs.save(l3rs.load("icons-resnet34"), "mine.safetensors")
assert l3rs.load("mine.safetensors").layers
l3rs.save_pretrained(l3rs.load("mine.safetensors"), "folder")
try:
    optimizer.decisions()
except ModuleNotFoundError as error:
    print(error)
"""


def declared(requirements: list[str]) -> set[str]:
    """The libraries as Python imports them."""
    names = {Requirement(text).name for text in requirements} - {"l3rs"}
    return {IMPORTED_AS.get(name, name) for name in names}


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linked(tmp_path_factory.mktemp("core") / "libraries")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linked(tmp_path_factory.mktemp("images") / "libraries", "images")


def test_pyproject_asks_for_what_the_errors_say() -> None:
    optional = PROJECT["optional-dependencies"]
    assert declared(PROJECT["dependencies"]) == CORE
    assert {extra: declared(optional[extra]) for extra in APART} == {extra: set(names) for extra, names in APART.items()}
    assert {extra: declared(optional[extra]) for extra in EXTRAS} == {e: set(names) - {"ray"} for e, names in EXTRAS.items()}
    assert re.search("<|==|~=", " ".join([*PROJECT["dependencies"], *(text for texts in optional.values() for text in texts)])) is None
    (everything,) = (Requirement(text) for text in optional["all"])
    assert (everything.name, everything.extras) == ("l3rs", set(EXTRAS))


def test_every_library_that_is_imported_is_asked_for() -> None:
    imported: set[str] = set()
    for file in (ROOT / "l3rs").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    asked_for = {name for libraries in (*EXTRAS.values(), *APART.values()) for name in libraries} - {"onnxscript", "wandb"}  # by others
    assert imported - set(sys.stdlib_module_names) - {"l3rs"} == CORE | asked_for | set(NOT_ASKED_FOR)


def test_the_core_alone_fine_tunes(core: Path) -> None:
    done = python(core, "-c", FINE_TUNING)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "L3RS.decisions() needs pandas: pip install 'l3rs[images]'\n"


def test_the_core_leaves_torchvision_alone(core: Path) -> None:
    """Where it is not installed, nothing is done about it."""
    code = "import l3rs, torch; print(l3rs._torchvision.declare_missing_operators(), hasattr(torch.ops.torchvision, 'nms'))"
    assert python(core, "-c", code).stdout == "False False\n"


def test_what_lacks_its_extra_names_it(core: Path) -> None:
    said = {
        "import l3rs.networks.pretrained": "l3rs.networks needs timm: pip install 'l3rs[images]'",
        "import l3rs.data": "l3rs.data needs timm: pip install 'l3rs[images]'",
        "import l3rs.finetuning.compare": "l3rs.finetuning needs timm: pip install 'l3rs[images]'",
        "import l3rs.evaluation.tables": "l3rs.evaluation needs timm: pip install 'l3rs[images]'",
        "import l3rs.lightning": "l3rs.lightning needs PyTorch Lightning: pip install 'l3rs[lightning]'",
        "import l3rs.own_images.run": "l3rs.own_images needs timm: pip install 'l3rs[images]'",
        "import l3rs.meta.train": "l3rs.meta needs timm: pip install 'l3rs[images]'",
        "import l3rs; l3rs.register_with_timm()": "register_with_timm() needs timm: pip install 'l3rs[images]'",
        "from l3rs.learned import theta; open('t.state', 'w').close(); theta.read({}, 't.state')": "t.state needs msgpack: "
        "pip install 'l3rs[learned]'",
    }
    each = "import sys\nfor code in sys.argv[1:]:\n    try: exec(code)\n    except ModuleNotFoundError as error: print(error)"
    done = python(core, "-c", each, *said)
    assert done.stdout.splitlines() == list(said.values()), done.stderr


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs `l3rs WORDS`."""
    return python(folder, "-c", "import sys; from l3rs.cli import main; main(sys.argv[1:])", *words)


def ends_in(line: str, done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command failed, with one line that ends so."""
    return done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.endswith(f"{line}\n")


def test_commands_that_lack_their_extra_end_in_a_line(core: Path, images: Path) -> None:
    photos = write_tree(images.parent / "photos", {"cats": 5, "dogs": 5})
    assert ends_in("needs jsonargparse: pip install 'l3rs[images]'", command(core, "info"))
    assert ends_in("l3rs meta-train needs EvoTorch: pip install 'l3rs[meta]'", command(images, "meta-train", "--out", "run"))
    own = command(images, "finetune", "--data", str(photos), "--model", "resnet18", "--from-scratch")
    assert ends_in("l3rs finetune needs PyTorch Lightning: pip install 'l3rs[lightning]'", own)


@pytest.mark.slow
def test_images_are_enough_for_the_comparison(images: Path) -> None:
    done = command(images, "finetune", "--tasks", "1", "--steps", "2", "--optimizers", "l3rs", "adam", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert (images.parent / "empty" / "l3rs-out" / "finetune.png").exists()


# Meta-training in one process, as on a machine where EvoTorch was carried by hand.
META_TRAINING = """
import sys, l3rs
sys.path.insert(0, sys.argv[1])
from small_runs import quick
from l3rs.meta.train import meta_train, processes
assert processes(quick(workers=0)) == 1
assert meta_train(quick(1), "run", progress=False).name == "quick"
try:
    processes(quick(workers=2))
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.mark.slow
def test_one_process_meta_trains_without_ray(tmp_path: Path) -> None:
    """Nor TensorBoard, nor what the command alone needs; the same settings on several processes name what is missing."""
    folder = linked(tmp_path / "libraries", "meta")
    for name in ("ray", "tensorboardX", "jsonargparse"):
        (folder / name).unlink()
    done = python(folder, "-W", "ignore", "-c", META_TRAINING, str(ROOT / "tests" / "meta"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "meta-training on several processes needs Ray: pip install 'l3rs[meta]'\n"


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import l3rs; l3rs.load('icons-generalist')", set()),
        ("from l3rs.cli import main; main(['--help'])", {"jsonargparse", "yaml"}),
        ("import run", OF_IMAGES),
        ("import tables", OF_IMAGES),
    ],
    ids=["import l3rs", "l3rs --help", "evaluate/run.py", "evaluate/tables.py"],
)
def test_starting_imports_nothing_heavy(code: str, allowed: set[str], tmp_path: Path) -> None:
    """So `import l3rs` takes 50 ms beside torch, `l3rs --help` under a second, and the paper's tables need no EvoTorch."""
    path = f"{ROOT}{os.pathsep}{ROOT / 'evaluate'}"
    done = run(sys.executable, "-c", f"{code}; import sys; print('\\n' + ' '.join(sys.modules))", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert loaded & (HEAVY | {"huggingface_hub"}) <= allowed


def test_what_is_installed_is_enough() -> None:
    for extra in EXTRAS:
        require("this test", extra)
    assert what_to_install("l3rs", "numpy") is None
    assert what_to_install("l3rs info", "pandas.core") == "l3rs info needs pandas: pip install 'l3rs[images]'"


@pytest.mark.slow
def test_pip_brings_what_the_core_needs_and_no_more(tmp_path: Path) -> None:
    """In a real virtual environment, with the tested versions."""
    wheel = build(tmp_path, "--wheel")[".whl"]
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    bin = tmp_path / "venv" / "bin"
    torch = re.search(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert torch is not None
    done = run(bin / "pip", "install", "-q", torch[0], "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    if "Failed to establish a new connection" in done.stderr:
        pytest.skip("pip reaches no index")
    assert done.returncode == 0, done.stderr[-3000:]
    installed = {line.partition("=")[0] for line in run(bin / "pip", "freeze", cwd=tmp_path).stdout.splitlines()}
    assert {IMPORTED_AS.get(name, name) for name in installed} & HEAVY <= {"yaml"}, installed  # which huggingface_hub brings
    done = run(bin / "python", "-W", "error", "-c", FINE_TUNING, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert ends_in("needs jsonargparse: pip install 'l3rs[images]'", run(bin / "l3rs", "info", cwd=tmp_path))
