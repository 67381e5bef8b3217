"""Random worlds for the properties of fair policies, as hypothesis strategies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fair_checks import Terms, terms
from fair_model import Engine, Profile, World, tenfold_engine
from hypothesis import Phase, settings
from hypothesis import strategies as st

from tenfold.core.settings import ScheduleSettings, Share
from tenfold.scheduling.accounts import Accounts
from tenfold.scheduling.base import PolicyFactory

CLAIM = settings(
    max_examples=15, derandomize=True, deadline=None, phases=(Phase.explicit, Phase.generate)
)
"""A few examples, the same every time. A world that fails can be read as it is."""


@dataclass(frozen=True)
class Scene:
    """All that a run depends on."""

    memory: int
    settings: ScheduleSettings
    profiles: tuple[Profile, ...]
    seed: int
    chunk: int = 0
    aborts: float = 0.0
    evictions: float = 0.0

    @property
    def longest(self) -> int:
        return max(profile.longest() for profile in self.profiles)

    @property
    def phi(self) -> dict[str, float]:
        return {profile.name: profile.weight for profile in self.profiles}

    def shares(self) -> list[Share]:
        return [Share(profile.name, profile.weight) for profile in self.profiles]

    def engine(self, factory: PolicyFactory) -> Engine:
        accounts = Accounts(self.settings)
        accounts.set_shares(self.shares())
        return tenfold_engine(
            factory, self.settings, self.memory, accounts=accounts, chunk=self.chunk
        )

    def world(self, engine: Engine) -> World:
        return World(engine, self.profiles, self.seed, aborts=self.aborts, evictions=self.evictions)

    def run(self, factory: PolicyFactory, steps: int) -> Engine:
        return self.world(self.engine(factory)).run(steps).engine

    def terms(self, engine: Engine) -> Terms:
        return terms(engine, self.settings.quantum, self.longest, self.phi)


@st.composite
def profiles(
    draw: st.DrawFn, name: str, memory: int, *, flood: bool | None, weights: bool, spare: bool
) -> Profile:
    """A client whose largest request takes at most half of the memory. ``flood``: one that always
    has more queued than fits; None: any behaviour."""
    least = max(1, memory // 12)
    own = draw(st.integers(least, memory // 5))
    shared = draw(st.integers(0, memory // 8))
    output = draw(st.integers(1, memory // 10))
    more: dict[str, Any] = {}
    if flood is None:
        flood = draw(st.booleans())
    if flood:
        more["depth"] = memory // (least + 1) + 2
    elif draw(st.booleans()):
        more["one_at_a_time"] = True
    else:
        more["chance"] = draw(st.sampled_from([0.05, 0.3, 0.9]))
        more["on"], more["off"] = draw(st.sampled_from([(1, 0), (10, 10), (5, 30)]))
    return Profile(
        name,
        weight=draw(st.sampled_from([1.0, 2.0, 4.0, 0.5])) if weights else 1.0,
        prefixes=draw(st.integers(1, 3)),
        shared=(shared // 2, shared),
        own=(least, own),
        output=(1, output),
        spare=draw(st.integers(0, 4)) if spare else 0,
        **more,
    )


@st.composite
def scenes(
    draw: st.DrawFn,
    *,
    flood: bool | None = None,
    weights: bool = False,
    chunks: bool = False,
    aborts: bool = False,
    clients: tuple[int, int] = (2, 4),
    **settings: Any,
) -> Scene:
    memory = draw(st.integers(48, 400))
    prices = draw(st.sampled_from([(1.0, 2.0), (1.0, 1.0), (2.0, 1.0), (0.5, 4.0)]))
    count = draw(st.integers(*clients))
    values: dict[str, Any] = {
        "policy": "dlpm",
        "quantum": float(draw(st.sampled_from([1, 7, 50, 200, 1000, 5000]))),
        "extend_weight": prices[0],
        "output_weight": prices[1],
        "admission": "reserve",
    }
    return Scene(
        memory,
        ScheduleSettings(**{**values, **settings}),
        tuple(
            draw(profiles(f"c{i}", memory, flood=flood, weights=weights, spare=True))
            for i in range(count)
        ),
        seed=draw(st.integers(0, 1 << 16)),
        chunk=draw(st.integers(1, memory)) if chunks else 0,
        aborts=draw(st.sampled_from([0.0, 0.2])) if aborts else 0.0,
        evictions=draw(st.sampled_from([0.0, 0.1])),
    )
