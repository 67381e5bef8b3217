"""A device's parts: names, memory, threads and cores."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tenfold.core.division import divide
from tenfold.core.errors import ConfigError
from tenfold.core.settings import DeviceSettings


def test_one_worker_has_the_whole_device() -> None:
    device = DeviceSettings("odd name", memory_bytes=100)
    assert divide(device, 1, range(8), 1000) == [device]


def test_memory_and_threads_are_divided_and_cores_are_disjoint() -> None:
    parts = divide(DeviceSettings("cpu:2"), 3, [0, 2, 4, 6, 8, 10, 12, 14], 1000)
    assert [part.name for part in parts] == ["cpu:2", "cpu:3", "cpu:4"]
    assert [part.memory_bytes for part in parts] == [200] * 3
    assert [part.threads for part in parts] == [3, 3, 2]
    assert [part.cores for part in parts] == [(0, 2, 4), (6, 8, 10), (12, 14)]
    assert DeviceSettings.from_dict(asdict(parts[0])) == parts[0]


def test_what_is_asked_for_is_what_is_divided() -> None:
    parts = divide(DeviceSettings(memory_bytes=100, threads=4), 2, range(8), 1000)
    assert [(part.memory_bytes, part.threads, part.cores) for part in parts] == [
        (50, 2, (0, 1)),
        (50, 2, (2, 3)),
    ]


def test_more_threads_than_cores_are_bound_to_none() -> None:
    parts = divide(DeviceSettings(), 3, range(2), 1000)
    assert [(part.threads, part.cores) for part in parts] == [(1, ())] * 3


def test_gpus_are_not_divided() -> None:
    parts = divide(DeviceSettings("cuda:1", memory_bytes=100), 2, range(8), 1000)
    assert [(part.name, part.memory_bytes, part.cores) for part in parts] == [
        ("cuda:1", 100, ()),
        ("cuda:2", 100, ()),
    ]


def test_names_must_be_told_apart() -> None:
    with pytest.raises(ConfigError, match="'fast' cannot be told apart"):
        divide(DeviceSettings("fast"), 2, range(2), 1000)
