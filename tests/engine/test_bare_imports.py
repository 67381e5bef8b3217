"""The engine and every floor below it import on a machine that has torch and little else."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys

for name in ("pydantic", "msgspec", "llguidance", "gguf", "cuda", "flashinfer"):
    sys.modules[name] = None
# What talks to the outside is for processes that do: the server and the worker's own.
outside = {"tenfold.core.config", "tenfold.core.sections", "tenfold.core.wire"}
triton = importlib.util.find_spec("triton") is not None
for floor in "core costs kvcache text scheduling memory kernels models engine".split():
    package = importlib.import_module(f"tenfold.{floor}")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        needs_triton = ".triton_" in module.name and not module.name.endswith("_checks")
        needs_triton |= module.name in ("tenfold.engine.cuda_shapes", "tenfold.engine.cuda_measure")
        if module.name not in outside and (triton or not needs_triton):
            importlib.import_module(module.name)
importlib.import_module("tenfold.bench.gpu")
print("imported")
"""


def test_engine_and_below_import_without_the_optional_packages() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr
