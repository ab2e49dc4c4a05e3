"""Runs the tests of the compiled kernels under AddressSanitizer and UndefinedBehaviorSanitizer (GCC, Linux; a few minutes).

    python tests/optimizer/kernels/sanitize.py            # the tests below
    python tests/optimizer/kernels/sanitize.py -k moments # some of them: arguments are pytest's

The C is built into a temporary folder, from which the tests load it; what is installed stays as it is. Any read or write outside of a
tensor ends the run with a report of where, and any undefined behaviour is printed and ends it too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SOURCES = {"_step": "l3rs/optimizer/kernels/step.c", "_elements": "l3rs/learned/elements.c"}
TESTS = ("tests/optimizer/kernels/test_kernels.py", "tests/optimizer/kernels/test_gate.py", "tests/learned/test_elements.py")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
FLAGS = ("-g", "-O1", "-std=gnu11", "-fPIC", "-shared", *SANITIZE)
RUN = """
import ctypes, sys, pytest
from l3rs.learned import elements
from l3rs.optimizer.kernels import native
native.shared_library = elements.shared_library = lambda _, name: ctypes.CDLL(f"{sys.argv[1]}/{name}.so")
sys.exit(pytest.main(sys.argv[2:]))
"""


def build(folder: Path) -> None:
    """Compiles both kernels."""
    for name, source in SOURCES.items():
        out = folder / f"{name}.so"
        subprocess.run(["gcc", *FLAGS, str(ROOT / source), "-o", str(out), "-lm"], check=True)


def main() -> int:
    libasan, libubsan = (
        subprocess.run(["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    )
    with tempfile.TemporaryDirectory() as temporary:
        build(Path(temporary))
        environment = {
            **os.environ,
            "LD_PRELOAD": f"{libasan}:{libubsan}",
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=86",  # Python itself never frees all that it has
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
            "PYTHONMALLOC": "malloc",  # so that reads past Python's own memory are seen too
            "PYTHONPATH": str(ROOT),
        }
        options = ("-q", "-s", "-n", "0", "-p", "no:cacheprovider", *TESTS, *sys.argv[1:])
        return subprocess.run([sys.executable, "-c", RUN, temporary, *options], env=environment, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
