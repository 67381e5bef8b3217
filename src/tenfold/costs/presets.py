"""Devices one may simulate without owning them, and files of measured ones, by name.

Peaks are the makers' for dense 16-bit products. What a serving engine reaches is less: 55 % of the
arithmetic, 75 % of the bandwidth and 2 ms of a step's time for launches and sampling are taken
throughout, and 80 % of the link to the host. These are assumptions, not measurements; a calibrated
file has none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tenfold.core.errors import ConfigError
from tenfold.costs.calibrated import Measured, load_costs
from tenfold.costs.formula import Roofline
from tenfold.costs.preble import FORMULAS, Preble
from tenfold.costs.step import StepModel

COMPUTE_SHARE, BANDWIDTH_SHARE, OVERHEAD_SECONDS = 0.55, 0.75, 2e-3
LINK_SHARE = 0.8

PCIE4, PCIE5 = 31.5e9, 63e9
"""Bytes a second of sixteen lanes, in one direction."""

DISK_BANDWIDTH = 3e9
"""Of a solid-state disk, where nothing is known; an assumption."""

HERE_BANDWIDTH = 1e9
"""From the page cache into pages, of a device that is a calibrated file; until it is measured."""


@dataclass(slots=True, frozen=True)
class Accelerator:
    """Peaks of one device: operations and bytes a second, its memory, and bytes a second from the
    host's."""

    flops: float
    bandwidth: float
    memory_bytes: int
    link: float = PCIE4


ACCELERATORS: Final[dict[str, Accelerator]] = {
    "a10g": Accelerator(70e12, 600e9, 24 << 30),
    "l4": Accelerator(121e12, 300e9, 24 << 30),
    "a100-80g": Accelerator(312e12, 2.039e12, 80 << 30),
    "h100": Accelerator(989e12, 3.35e12, 80 << 30, PCIE5),
}

_MEMORY: Final[dict[str, int]] = {
    "preble-mistral-7b-a6000": 48 << 30,
    "preble-mistral-7b-a100": 80 << 30,
    "preble-llama3-70b-2xa100": 160 << 30,
    "preble-llama3-70b-2xh100": 160 << 30,
}


@dataclass(slots=True, frozen=True)
class ModelShape:
    """What a roofline needs of a model. ``attention_width``: layers x query heads x head dim."""

    parameters: float
    weight_bytes: float
    kv_token_bytes: float
    attention_width: float


@dataclass(slots=True, frozen=True)
class DeviceCosts:
    """What steps cost on a device, and its memory (0: not known). ``link``: bytes a second at which
    weights come from the host's memory."""

    steps: StepModel
    memory_bytes: int
    about: str
    link: float = LINK_SHARE * PCIE4


def names() -> list[str]:
    """Every preset; a path of a calibrated file may stand in its place."""
    return [*ACCELERATORS, *FORMULAS]


def device_costs(device: str, model: ModelShape) -> DeviceCosts:
    """Of a preset, or of the file that ``tenfold doctor --calibrate`` wrote.

    Raises ConfigError for a name that is neither."""
    if device in ACCELERATORS:
        peak = ACCELERATORS[device]
        steps = Roofline(
            parameters=model.parameters,
            weight_bytes=model.weight_bytes,
            kv_token_bytes=model.kv_token_bytes,
            attention_width=model.attention_width,
            flops=COMPUTE_SHARE * peak.flops,
            bandwidth=BANDWIDTH_SHARE * peak.bandwidth,
            overhead=OVERHEAD_SECONDS,
        )
        about = (
            f"{device}: roofline, {COMPUTE_SHARE:.0%} of {peak.flops / 1e12:g} Tflop/s, "
            f"{BANDWIDTH_SHARE:.0%} of {peak.bandwidth / 1e9:g} GB/s"
        )
        return DeviceCosts(steps, peak.memory_bytes, about, LINK_SHARE * peak.link)
    if device in FORMULAS:
        about = f"{device}: published coefficients; the model's shape gives only its memory"
        return DeviceCosts(Preble(device), _MEMORY[device], about)
    path = Path(device)
    if not path.is_file():
        raise ConfigError(
            f"unknown device {device!r}: neither a file nor one of {', '.join(names())}"
        )
    found = load_costs(path)
    about = f"{path.name}: measured with {found.model}, median error {found.median_error:.1%}"
    return DeviceCosts(Measured(found.costs), 0, about, HERE_BANDWIDTH)
