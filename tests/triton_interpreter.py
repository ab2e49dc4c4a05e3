"""Triton's interpreter, with which its kernels run without a GPU: mended for the numpy of today."""

from __future__ import annotations

from typing import Any


def mend_interpreter() -> None:
    """Triton 3.6's interpreter takes `int` of arrays of one element, which numpy 2.4 has ended; later ones have this themselves."""
    from triton.runtime import interpreter

    usual = interpreter._patch_lang_tensor

    def patch(tensor: type, *scope: Any) -> None:
        usual(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()  # type: ignore[attr-defined]

    interpreter._patch_lang_tensor = patch
