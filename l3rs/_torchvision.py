"""Makes `import torchvision` (and so timm) work beside a CPU-only build of torch.

The torchvision wheels on PyPI are linked against CUDA. Where torch has no CUDA their operator library cannot be loaded, and
`import torchvision` ends in `operator torchvision::nms does not exist`, because its Python part registers fake kernels for
two operators that nobody declared. Declaring their schemas first is all that is missing: l3rs calls neither of them.
Nothing is done where torch has CUDA or torchvision's operators load. Imported before anything that imports torchvision.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a Library's declarations live as long as it does


def _operators_load(folder: Path) -> bool:
    """Whether torchvision's own operators can be loaded into this process."""
    for library in sorted(folder.glob("_C*.so")) + sorted(folder.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


def declare_missing_operators() -> bool:
    """Declares torchvision's two operators if, and only if, they cannot be had; True when it did."""
    spec = importlib.util.find_spec("torchvision")
    if torch.version.cuda is not None or spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return False
    if _operators_load(Path(spec.origin).parent):
        return False
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)
    return True


declare_missing_operators()
