"""One device divided among several workers. Knows nothing of what they are for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tenfold.core.errors import ConfigError
from tenfold.core.settings import DeviceSettings

FREE_SHARE = 0.6
"""Of the free memory, for all workers together, where none is given."""


def divide(
    device: DeviceSettings, workers: int, cores: Sequence[int], free: int
) -> list[DeviceSettings]:
    """The settings of each worker: "cpu:0", "cpu:1", … with equal parts of memory and threads.

    ``cores``: those this process may use; workers are bound to disjoint ones where there is one for
    each thread, and otherwise to none. ``free``: bytes of free memory. GPUs are not divided: worker
    n has the n-th from the one that is named, with the memory that one would have. Raises
    ConfigError for a name that cannot be counted on from.
    """
    if workers == 1:
        return [device]
    kind, colon, first = device.name.partition(":")
    if not (colon and first.isdigit()):
        raise ConfigError(
            f"{workers} workers of the device {device.name!r} cannot be told apart; "
            'name it "cpu:0" or "cuda:0"'
        )
    names = [f"{kind}:{int(first) + number}" for number in range(workers)]
    if kind == "cuda":
        return [replace(device, name=name) for name in names]
    memory = (device.memory_bytes or int(FREE_SHARE * free)) // workers
    threads = device.threads or len(cores)
    parts = [max(1, (threads + number) // workers) for number in reversed(range(workers))]
    bound = sum(parts) <= len(cores)
    made, taken = [], 0
    for name, part in zip(names, parts, strict=True):
        mine = tuple(cores[taken : taken + part]) if bound else ()
        taken += part
        made.append(replace(device, name=name, memory_bytes=memory, threads=part, cores=mine))
    return made
