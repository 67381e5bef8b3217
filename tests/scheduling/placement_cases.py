"""Small placement problems, drawn at random, and their exact answers by trying everything."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product
from math import inf

from tenfold.scheduling.placement.base import PlaceDevice, PlacedModel

GIB = 1 << 30
SIZES = (2, 3, 6, 8, 14, 16, 26, 28)
"""Weights in GiB, as models of one to fourteen billion parameters have."""


@dataclass(slots=True, frozen=True)
class Case:
    models: list[PlacedModel]
    devices: list[PlaceDevice]


def case(seed: int, most_models: int = 7, least_models: int = 4) -> Case:
    """Two or three devices whose memory is 35 to 90 % full of weights, demand with a long tail."""
    random_ = random.Random(seed)
    count = random_.randint(least_models, most_models)
    sizes = [random_.choice(SIZES) * GIB for _ in range(count)]
    devices = random_.choice((2, 2, 3))
    room = max(int(sum(sizes) / random_.uniform(0.35, 0.9) / devices), max(sizes) + GIB)
    models = [
        PlacedModel(
            f"m{n}",
            size,
            token_rate=random_.lognormvariate(5, 1.5),
            token_bytes=random_.choice((32, 64, 128)) << 10,
            tpot=random_.choice((0.02, 0.05, 0.1)),
        )
        for n, size in enumerate(sizes)
    ]
    return Case(models, [PlaceDevice(f"d{n}", room) for n in range(devices)])


def optimum(case: Case) -> float:
    """The lowest highest pressure of all placements in which everything fits; infinity for none."""
    best = inf
    names = range(len(case.devices))
    room = [device.capacity for device in case.devices]
    for homes in product(names, repeat=len(case.models)):
        weight, demand = [0.0] * len(room), [0.0] * len(room)
        for model, home in zip(case.models, homes, strict=True):
            weight[home] += model.weight_bytes
            demand[home] += model.demand
        if all(weight[d] < room[d] for d in names):
            best = min(best, max(demand[d] / (room[d] - weight[d]) for d in names))
    return best
