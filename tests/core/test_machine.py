from __future__ import annotations

from pathlib import Path

import pytest

from tenfold.core import machine
from tenfold.core.errors import ConfigError


def _write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_memory_is_cut_to_the_containers_limit(tmp_path: Path) -> None:
    _write(tmp_path, "proc/meminfo", "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 800 kB\n")
    assert machine.memory(tmp_path) == machine.Memory(1000 * 1024, 800 * 1024)
    _write(tmp_path, "sys/fs/cgroup/memory.max", "max\n")
    assert machine.memory(tmp_path).total == 1000 * 1024
    _write(tmp_path, "sys/fs/cgroup/memory.max", str(500 * 1024))
    _write(tmp_path, "sys/fs/cgroup/memory.current", str(100 * 1024))
    assert machine.memory(tmp_path) == machine.Memory(500 * 1024, 400 * 1024)


def test_facts_of_a_made_machine(tmp_path: Path) -> None:
    _write(tmp_path, "proc/cpuinfo", "model name\t: Test 9000\nflags\t\t: fpu avx2 fma sse\n")
    _write(tmp_path, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    _write(tmp_path, "proc/sys/vm/max_map_count", "65530\n")
    assert machine.cpu_name(tmp_path) == "Test 9000"
    assert machine.cpu_features(tmp_path) == ["avx2", "fma"]
    assert machine.huge_pages(tmp_path) == "madvise"
    assert machine.max_map_count(tmp_path) == 65530


def test_a_system_that_tells_nothing_does_not_crash(tmp_path: Path) -> None:
    assert machine.memory(tmp_path) == machine.Memory(0, 0)
    assert machine.cpu_name(tmp_path)
    assert machine.cpu_features(tmp_path) == []
    assert machine.huge_pages(tmp_path) is None
    assert machine.max_map_count(tmp_path) is None
    assert machine.usable_cores() >= 1


def test_other_systems_are_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.refusal("linux", "x86_64") is None
    assert machine.refusal("linux", "aarch64") is None
    for system, kind in (("darwin", "arm64"), ("win32", "AMD64"), ("linux", "riscv64")):
        why = machine.refusal(system, kind)
        assert why is not None
        assert system in why and kind in why
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ConfigError, match="Linux"):
        machine.require_supported()
