"""The libraries that `pip install l3rs` leaves out, by the extra that brings them, and the one line that names what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType

EXTRAS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "images": ("timm", "torchvision", "PIL", "pandas", "scipy", "matplotlib", "tqdm", "jsonargparse", "yaml"),
        "lightning": ("pytorch_lightning", "torchmetrics"),
        "meta": ("evotorch", "ray", "tensorboardX"),
        "learned": ("msgpack",),
    }
)
"""Names as Python imports them."""
APART: Mapping[str, tuple[str, ...]] = MappingProxyType({"export": ("onnx", "onnxscript", "onnxruntime", "wandb")})
"""Extras that `all` leaves out, as they are heavy and for one thing each."""
_CALLED = {"PIL": "Pillow", "yaml": "PyYAML", "evotorch": "EvoTorch", "ray": "Ray", "pytorch_lightning": "PyTorch Lightning"}


def what_to_install(who: str, library: str) -> str | None:
    """The line for `who` needs a library that is not installed, such as the `name` of a ModuleNotFoundError; None: no extra brings it."""
    top = library.partition(".")[0]
    for extra, libraries in {**EXTRAS, **APART}.items():
        if top in libraries:
            return f"{who} needs {_CALLED.get(top, top)}: pip install 'l3rs[{extra}]'"
    return None


_OF_PARTS = ("jsonargparse", "ray", "tensorboardX")  # of an extra: what commands, several processes and TensorBoard need, and ask for


def require(who: str, needed: str) -> None:
    """Checks that libraries are installed, without importing them.

    Args:
        who: what needs them; the message begins with it.
        needed: an extra, for the libraries that all of its rooms need, or one library as Python imports it.

    Raises:
        ModuleNotFoundError: one is missing; the message names it and its extra.
    """
    wanted = {**EXTRAS, **APART}.get(needed, (needed,))
    for library in (name for name in wanted if needed not in EXTRAS or name not in _OF_PARTS):
        if find_spec(library) is None:
            raise ModuleNotFoundError(what_to_install(who, library), name=library)
