"""Which column is chosen, what it says of itself, and how its threads begin and end."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from kernel_cases import make, packed, random_raw

from tenfold.core.errors import ConfigError, TenfoldError
from tenfold.kernels import table
from tenfold.kernels.table import Mode, build_kernels

MODES: tuple[Mode, ...] = ("exact", "fast")


def thread_count() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="no compiler on this machine"
)
def test_the_extension_is_built_where_a_compiler_is() -> None:
    assert build_kernels(native=True).describe().startswith("native ")


def test_describe() -> None:
    pytest.importorskip("tenfold._native")
    arch = "(AVX-512|AVX2|NEON|portable)"
    for mode in MODES:
        line = build_kernels(threads=2, mode=mode).describe()
        assert re.fullmatch(f"native {arch} kernels, {mode} mode, 2 threads", line)
    one = build_kernels(threads=1)
    assert one.describe().endswith(", 1 thread") and one.threads == 1
    assert build_kernels().threads == len(os.sched_getaffinity(0))


def test_torch_when_asked() -> None:
    kernels = build_kernels(native=False)
    assert kernels.layout == "dense-f32"
    assert kernels.describe().startswith("torch kernels (as asked)")
    kernels = build_kernels(native=False, mode="fast")
    assert kernels.layout == "codes"
    assert kernels.describe().startswith("torch kernels in fast mode (as asked)")


def test_arch_is_forced_by_name() -> None:
    pytest.importorskip("tenfold._native")
    kernels = build_kernels(arch="portable")
    assert kernels.describe().split()[1] in ("portable", "NEON")
    assert kernels.layout == build_kernels(mode="fast").layout
    with pytest.raises(ConfigError, match=r"kernels.arch = abacus: .*no kernel row"):
        build_kernels(arch="abacus")


def test_torch_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tenfold._native", None)
    line = build_kernels().describe()
    assert line.startswith("torch kernels (no compiled extension: ") and "\n" not in line
    with pytest.raises(ConfigError, match="does not import"):
        build_kernels(native=True)


def test_modes_and_threads_are_checked() -> None:
    with pytest.raises(ConfigError, match="exact or fast"):
        build_kernels(mode="quick")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="-1"):
        build_kernels(threads=-1)


def test_columns_are_a_registry() -> None:
    assert table.columns().names() == ["native", "torch", "triton"]


def test_close_ends_the_threads() -> None:
    raw = random_raw("f32", 640, 64)
    packed(make("torch"), "f32", 640, 64, raw)  # torch starts threads of its own on first use
    before = thread_count()
    kernels = make("portable", 4)
    weight = packed(kernels, "f32", 640, 64, raw)
    kernels.linear(torch.zeros(200, 64), weight)
    assert thread_count() == before + 3
    kernels.close()
    kernels.close()
    assert thread_count() == before
    with pytest.raises(TenfoldError, match="closed"):
        kernels.linear(torch.zeros(1, 64), weight)


def test_dropping_the_object_ends_the_threads() -> None:
    before = thread_count()
    many = [make("portable", 3) for _ in range(5)]
    for kernels in many:
        packed(kernels, "f32", 640, 64, random_raw("f32", 640, 64))
    assert thread_count() == before + 10
    del kernels
    many.clear()
    assert thread_count() == before


def test_calls_from_several_threads_take_turns() -> None:
    kernels = make("portable", 3)
    weight = packed(kernels, "q8_0", 512, 256, random_raw("q8_0", 512, 256))
    inputs = [torch.randn(size, 256) for size in (1, 3, 17, 90)]
    want = [kernels.linear(x, weight) for x in inputs]
    wrong: list[int] = []

    def caller(i: int) -> None:
        for _ in range(50):
            if not torch.equal(kernels.linear(inputs[i], weight), want[i]):
                wrong.append(i)

    callers = [threading.Thread(target=caller, args=(i,)) for i in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not wrong


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_its_own_threads() -> None:
    kernels = make("portable", 3)
    weight = packed(kernels, "q8_0", 512, 256, random_raw("q8_0", 512, 256))
    x = torch.randn(64, 256)
    want = kernels.linear(x, weight).numpy().tobytes()
    child = os.fork()
    if child == 0:  # no torch operator may run here: its own threads did not survive either
        good = kernels.linear(x, weight).numpy().tobytes() == want
        kernels.close()
        os._exit(0 if good else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert kernels.linear(x, weight).numpy().tobytes() == want
