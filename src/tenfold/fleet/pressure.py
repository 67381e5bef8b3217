"""How hard the keys and values of each device are pressed, as metrics and placement see it.

Counters of the workers' states become token rates, and these Prism's ratio (section 6.1): growth of
keys and values over the target between tokens, by the memory that weights leave. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

from tenfold.core.clock import Clock
from tenfold.core.messages import DeviceStats, ModelStats
from tenfold.core.settings import DeviceSettings
from tenfold.fleet.served import ModelSource, ServedModel
from tenfold.scheduling.placement.rates import Rates

HIGHEST = 1e12
"""Said of a device without memory for keys and values: JSON knows no infinity."""


class Pressure:
    """Rates of every model at every device, over ``window`` seconds, from the states it is shown.

    Prompt tokens count when they are computed; those found in a prefix cache take no new memory and
    are left out."""

    def __init__(
        self, window: float, clock: Clock, entry: Callable[[str], ServedModel | None]
    ) -> None:
        self.rates = Rates(window)
        self._clock = clock
        self._entry = entry

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
                model.kv_token_rate = self.rates.rate(model.name, now, state.device)
                demand += self._demand(model, devices[state.device])
            weights = sum(model.weight_pages for model in state.models)
            left = (state.capacity_pages - weights - state.scratch_pages) * state.page_bytes
            state.pressure = demand / left if left > 0 else HIGHEST if demand else 0.0

    def _demand(self, model: ModelStats, device: DeviceSettings) -> float:
        entry = self._entry(model.name)
        if entry is None or entry.facts is None:
            return 0.0
        growth = model.kv_token_rate * entry.facts.kv_bytes_per_token
        return growth / tpot_of(entry.source, device)


def tpot_of(source: ModelSource, device: DeviceSettings) -> float:
    """The model's target between tokens, else the device's; never 0."""
    wished = source.options.tpot_target or device.deadlines.tpot or device.itl_target
    return wished or inf
