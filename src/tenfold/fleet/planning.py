"""A dry run: which models would be where on which devices, before any of them is started.

Asks the same placement as a server does, with sizes from the checkpoints' headers; no weight is
read. Knows no worker, and nothing of what a running server did.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Literal

from tenfold.core import machine
from tenfold.core.clock import VirtualClock
from tenfold.core.division import FREE_SHARE
from tenfold.core.errors import ConfigError, ModelFileError
from tenfold.core.settings import DeviceSettings, ModelSetup, PlacementSettings
from tenfold.core.types import ModelFacts
from tenfold.fleet.pressure import placed, step_bytes
from tenfold.models.sizes import sizes_on
from tenfold.scheduling.placement.base import PlaceDevice, PlacedModel, board_of, parts_of
from tenfold.scheduling.placement.placer import Homes, Placer

READ_SPEED = float(1 << 30)
"""Bytes a second at which packed weights are read, where nothing better is known."""

MOST_READ = 256 << 20

State = Literal["awake", "asleep", "too large"]


@dataclass(slots=True)
class PlannedModel:
    """``devices``: where it would be; none for one that is too large for all of them.
    ``kv_tokens``: what the memory that awake weights leave on its device would hold of it; for one
    that sleeps, if it were awake there alone. ``wake_seconds``: to read its weights again. ``why``:
    in words, unless it is simply awake."""

    name: str
    state: State
    devices: list[str]
    weight_bytes: int
    kv_bytes_per_token: int
    context_length: int
    kv_tokens: int
    wake_seconds: float
    token_rate: float
    why: str = ""


@dataclass(slots=True)
class PlannedDevice:
    """``weight_bytes``: of the models that are awake; ``step_bytes``: for the results of the
    largest step of any model there. ``pressure``: KV-pressure ratio at the given rates; None where
    weights leave nothing."""

    name: str
    capacity_bytes: int
    weight_bytes: int
    step_bytes: int
    kv_bytes: int
    pressure: float | None
    models: list[str] = field(default_factory=list)


@dataclass(slots=True)
class FleetPlan:
    policy: str
    read_speed: float
    devices: list[PlannedDevice]
    models: list[PlannedModel]

    @property
    def fits(self) -> bool:
        """Whether every model could be served, awake or asleep."""
        return all(model.devices for model in self.models)


def plan_fleet(
    models: Sequence[tuple[ModelSetup, Path]],
    devices: Sequence[DeviceSettings],
    placement: PlacementSettings,
    rates: Mapping[str, float] | None = None,
    read_speed: float = READ_SPEED,
) -> FleetPlan:
    """Where the models would go. ``rates``: tokens a second by name, prompts and answers together;
    with none at all every model counts alike. Raises ConfigError for a rate of a model that is not
    there or a device of unknown memory, ModelFileError for a checkpoint that cannot be read."""
    rates = dict(rates or {})
    names = [setup.name for setup, _ in models]
    if unknown := sorted(rates.keys() - set(names)):
        raise ConfigError(f"a rate is given for {unknown[0]!r}; the models are {', '.join(names)}")
    memory = {device.name: memory_of(device) for device in devices}
    views, facts = [], {}
    steps: dict[str, dict[str, int]] = {device.name: {} for device in devices}
    for setup, path in models:
        sizes = sizes_on(path, setup.name, devices[0], setup.kv_dtype)
        facts[setup.name] = sizes.facts
        for device in devices:
            steps[device.name][setup.name] = step_bytes(
                sizes, device, memory[device.name], setup.speculation
            )
        views.append(
            placed(
                setup.name,
                sizes.facts,
                devices[0],
                rates.get(setup.name, 0.0),
                tpot_target=setup.tpot_target,
                floor_bytes=setup.floor_bytes,
                pinned=setup.pin,
            )
        )
    # Any model may come to any device, and may step there.
    rooms = [_room(name, memory[name], steps[name].values()) for name in memory]
    homes = _homes(views, rooms, placement)
    spread = len(rooms) if placement.policy == "replicate" else 1
    lone = [replace(view, token_rate=view.token_rate / spread) for view in views]
    planned = [_device(name, memory[name], steps[name], lone, homes) for name in memory]
    at = {device.name: device for device in planned}
    found = [_model(view, facts[view.name], homes, at, read_speed) for view in views]
    return FleetPlan(placement.policy, read_speed, planned, found)


def memory_of(device: DeviceSettings) -> int:
    """Its memory in bytes; a CPU device without any takes what a worker would."""
    if device.memory_bytes:
        return device.memory_bytes
    if device.name.startswith("cuda"):
        raise ConfigError(
            f"how much memory {device.name} has is not known without starting it; give "
            "device.memory, or --devices 1x80GiB"
        )
    return int(FREE_SHARE * machine.memory().available)


def _homes(
    views: list[PlacedModel], rooms: list[PlaceDevice], placement: PlacementSettings
) -> list[Homes]:
    """One for all devices together, or, where each holds all models, one for each."""
    if placement.policy == "replicate":
        placer = Placer(replace(placement, policy="balanced"), VirtualClock())
        return [placer.homes(views, [room]) for room in rooms]
    return [Placer(placement, VirtualClock()).homes(views, rooms)]


def _room(name: str, memory: int, steps: Iterable[int]) -> PlaceDevice:
    """What is left beside the largest of these steps."""
    return PlaceDevice(name, max(0, memory - max(steps, default=0)))


def _device(
    name: str,
    memory: int,
    steps: Mapping[str, int],
    views: list[PlacedModel],
    homes: list[Homes],
) -> PlannedDevice:
    here = [v for v in views if any(name in h.placement.get(v.name, ()) for h in homes)]
    room = _room(name, memory, [steps[view.name] for view in here])
    awake = [view for view in here if not _sleeps(view.name, room.name, homes)]
    board = board_of([room], parts_of(awake, [room], {v.name: (room.name,) for v in awake}))
    weights = sum(view.weight_bytes for view in awake)
    pressure = board.pressure(room.name)
    return PlannedDevice(
        room.name,
        memory,
        weights,
        memory - room.capacity,
        max(0, room.capacity - weights),
        pressure if pressure < inf else None,
        [view.name for view in here],
    )


def _sleeps(model: str, device: str, homes: list[Homes]) -> bool:
    return any(model in h.asleep and device in h.placement.get(model, ()) for h in homes)


def _model(
    view: PlacedModel,
    facts: ModelFacts,
    homes: list[Homes],
    at: dict[str, PlannedDevice],
    read_speed: float,
) -> PlannedModel:
    devices = [device for one in homes for device in one.placement.get(view.name, ())]
    asleep = [device for device in devices if _sleeps(view.name, device, homes)]
    state: State = "awake" if len(asleep) < len(devices) else "asleep"
    why, left = "", 0
    if not devices:
        state, why = "too large", homes[0].hopeless[view.name]
    elif state == "asleep":
        why = f"no room on {asleep[0]} beside the others; wakes in their place when asked for"
        left = max(at[d].capacity_bytes - at[d].step_bytes for d in devices) - view.weight_bytes
    else:
        left = max(at[device].kv_bytes for device in devices if device not in asleep)
    return PlannedModel(
        view.name,
        state,
        devices,
        facts.weight_bytes,
        facts.kv_bytes_per_token,
        facts.context_length,
        left // facts.kv_bytes_per_token if facts.kv_bytes_per_token else 0,
        facts.weight_bytes / read_speed,
        view.token_rate,
        why,
    )


def parse_devices(text: str, like: DeviceSettings) -> list[DeviceSettings]:
    """Devices as "2x8GiB,16GiB": so many of so much memory, numbered on from the name of ``like``,
    whose other settings they have. Raises ConfigError."""
    from tenfold.core.sizes import parse_bytes

    kind = like.name.partition(":")[0]
    made: list[DeviceSettings] = []
    for each in text.split(","):
        count, times, size = each.strip().rpartition("x")
        if times and not (count.isdigit() and int(count) > 0):
            raise ConfigError(f"{each.strip()!r} is no group of devices; write one like 2x8GiB")
        memory = parse_bytes(size)
        if memory < like.page_bytes:
            raise ConfigError(f"a device of {size} holds not one page of {like.page_bytes} bytes")
        for _ in range(int(count or 1)):
            made.append(replace(like, name=f"{kind}:{len(made)}", memory_bytes=memory))
    return made


def measure_read_speed(paths: Sequence[Path]) -> float:
    """Bytes a second at which the files come now, from the page cache or the disk, wherever they
    are; up to 256 MiB are read. Raises ModelFileError where there is nothing to read."""
    files = [f for path in paths for f in ([path] if path.is_file() else _weights(path))]
    count, buffer = 0, bytearray(4 << 20)
    began = time.perf_counter()
    for file in dict.fromkeys(files):
        try:
            with file.open("rb", buffering=0) as stream:
                while count < MOST_READ and (got := stream.readinto(buffer)):
                    count += got
        except OSError as exc:
            raise ModelFileError(f"{file}: cannot be read: {os.strerror(exc.errno or 0)}") from None
    if not count:
        raise ModelFileError("there is no file of weights to measure the read speed with")
    return count / max(time.perf_counter() - began, 1e-9)


def _weights(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.gguf")])
