"""Every Triton kernel compiles to machine code for GPUs that are not here, in bf16 too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("capability", ["80", "90"])
def test_bf16_kernels_compile(capability: str, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    script = Path(__file__).with_name("compile_triton.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), capability, "bfloat16"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    names = {kernel["name"] for kernel in kernels}
    assert len(names) == 9, names
    most = {"80": 163 << 10, "90": 227 << 10}[capability]
    for kernel in kernels:
        assert kernel["cubin"] > 0 and kernel["shared"] <= most, kernel
        if kernel["name"] in ("_prefill_kernel", "_decode_kernel", "_experts_kernel"):
            assert kernel["wgmma"] + kernel["mma"] > 0, f"no tensor cores: {kernel}"
