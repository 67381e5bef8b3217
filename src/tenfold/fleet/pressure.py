"""How hard the keys and values of each device are pressed, as metrics and placement see it.

Counters of the workers' states become token rates, and these Prism's ratio (section 6.1): growth of
keys and values over the target between tokens, by the memory that weights leave. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

from tenfold.core.clock import Clock
from tenfold.core.messages import DeviceStats, ModelStats
from tenfold.core.settings import DeviceSettings, Speculation
from tenfold.core.types import ModelFacts
from tenfold.engine.step_memory import most_pages
from tenfold.fleet.served import ServedModel
from tenfold.models.sizes import Sizes
from tenfold.scheduling.placement.base import PlacedModel
from tenfold.scheduling.placement.rates import Rates

LEAST_TOKENS, LEAST_PAGES = 256, 2
"""Keys and values, or pages, that a model must have room for to run, where it names no floor."""

HIGHEST = 1e12
"""Said of a device without memory for keys and values: JSON knows no infinity."""


class Pressure:
    """Rates of every model at every device, over ``window`` seconds, from the states it is shown.

    ``rates``: of tokens. Prompt tokens count when they are computed; those found in a prefix cache
    take no new memory and are left out. ``busy``: of microseconds of steps. ``lacked``: of requests
    that a device preempted, under the name of the device."""

    def __init__(
        self, window: float, clock: Clock, entry: Callable[[str], ServedModel | None]
    ) -> None:
        self.rates, self.busy, self.lacked = Rates(window), Rates(window), Rates(window)
        self._clock = clock
        self._entry = entry

    def begin(self, model: str, device: str) -> None:
        """The model's counters at the device start again from 0."""
        self.rates.begin(model, device)
        self.busy.begin(model, device)

    def forget(self, model: str) -> None:
        self.rates.forget(model)
        self.busy.forget(model)

    def take(self, states: Iterable[DeviceStats], devices: dict[str, DeviceSettings]) -> None:
        """Read the counters, and write rates and pressures into the states."""
        now = self._clock.now()
        for state in states:
            if state.device not in devices:
                continue
            demand = 0.0
            for model in state.models:
                counted = model.prompt_tokens + model.generated_tokens
                self.rates.read(model.name, state.device, counted, now)
                self.busy.read(model.name, state.device, round(1e6 * model.step_seconds), now)
                model.kv_token_rate = self.rates.rate(model.name, now, state.device)
                demand += self._demand(model, devices[state.device])
            preempted = sum(model.preemptions for model in state.models)
            self.lacked.read(state.device, state.device, preempted, now)
            weights = sum(model.weight_pages for model in state.models)
            left = (state.capacity_pages - weights - state.scratch_pages) * state.page_bytes
            state.pressure = demand / left if left > 0 else HIGHEST if demand else 0.0

    def _demand(self, model: ModelStats, device: DeviceSettings) -> float:
        entry = self._entry(model.name)
        if entry is None or entry.facts is None:
            return 0.0
        growth = model.kv_token_rate * entry.facts.kv_bytes_per_token
        return growth / tpot_of(entry.source.options.tpot_target, device)


def tpot_of(target: float | None, device: DeviceSettings) -> float:
    """A model's target between tokens, else the device's; never 0."""
    return target or device.deadlines.tpot or device.itl_target or inf


def step_bytes(
    sizes: Sizes, device: DeviceSettings, capacity: int, speculation: Speculation | None
) -> int:
    """What a model's steps may take of a device's memory for their results."""
    if sizes.steps is None:
        return 0
    page = device.page_bytes
    left = capacity // page + -sizes.facts.weight_bytes // page
    return page * most_pages(sizes.steps, device, speculation, left)


def placed(
    name: str,
    facts: ModelFacts | None,
    device: DeviceSettings,
    rate: float,
    *,
    tpot_target: float | None,
    floor_bytes: int,
    fixed: bool = False,
    pinned: bool = False,
    busy: float = 0.0,
) -> PlacedModel:
    """A model as placements see it: weights in whole pages, and room for a few pages of keys and
    values. One of which nothing is known takes nothing."""
    page = device.page_bytes
    weights, token = (facts.weight_bytes, facts.kv_bytes_per_token) if facts else (0, 0)
    return PlacedModel(
        name,
        -(-weights // page) * page,
        rate,
        token,
        tpot_of(tpot_target, device),
        least_bytes=floor_bytes or max(LEAST_PAGES * page, LEAST_TOKENS * token),
        fixed=fixed,
        pinned=pinned,
        busy=busy,
    )
