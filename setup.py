"""The C kernels. They are plain shared libraries that ctypes loads, so one wheel serves every Python; where none can be compiled, torch
operations do the same, and the wheel is a pure one."""

from __future__ import annotations

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

VECTOR, DECIDE = "l3rs/optimizer/kernels/vector.h", "l3rs/optimizer/kernels/decide.h"
FLAGS = [
    *("-O3", "-std=gnu11", "-funroll-loops", "-fno-math-errno", "-fno-trapping-math"),
    *("-fassociative-math", "-fno-signed-zeros", "-fvisibility=hidden"),
]
WRAP = "-fno-wrapv"  # Python's own -fwrapv keeps the compiler from counting these loops' steps beforehand
KERNELS = [
    Extension(
        "l3rs.optimizer.kernels._step",
        ["l3rs/optimizer/kernels/step.c"],
        depends=[VECTOR, DECIDE],
        extra_compile_args=FLAGS,
        optional=True,
    ),
    Extension("l3rs.learned._elements", ["l3rs/learned/elements.c"], depends=[VECTOR], extra_compile_args=[*FLAGS, WRAP], optional=True),
]


class BuildKernels(build_ext):
    """Compiles `_step.so`, without the name of a Python in it."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))


class BuildWheel(bdist_wheel):
    """Makes `py3-none-PLATFORM`, and `py3-none-any` where nothing was compiled."""

    def run(self) -> None:
        self.run_command("build_ext")
        if not any(Path(file).exists() for file in self.get_finalized_command("build_ext").get_outputs()):
            self.distribution.ext_modules, self.root_is_pure = [], True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(ext_modules=KERNELS, cmdclass={"build_ext": BuildKernels, "bdist_wheel": BuildWheel})
