"""What a simulation is set up with: plain values, as ``fleet.simulator.config`` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tenfold.core.settings import (
    DeadlineSettings,
    PlacementSettings,
    QueueSettings,
    ResidencySettings,
    RoutingSettings,
    ScheduleSettings,
)
from tenfold.costs.presets import ModelShape
from tenfold.fleet.workloads.base import Workload


@dataclass(slots=True)
class ShapeSettings:
    """A model's shape: ``parameters``, ``weight_bits`` of each, ``layers``, ``heads`` (of queries),
    ``kv_heads`` and ``head_dim``, with ``kv_bytes`` for each value of a key."""

    parameters: float = 8.03e9
    weight_bits: float = 16.0
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    kv_bytes: float = 2.0
    context: int = 131_072

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one token."""
        return max(1, round(2 * self.layers * self.kv_heads * self.head_dim * self.kv_bytes))

    @property
    def model(self) -> ModelShape:
        return ModelShape(
            self.parameters,
            self.parameters * self.weight_bits / 8,
            self.kv_token_bytes,
            self.layers * self.heads * self.head_dim,
        )


@dataclass(slots=True)
class ClusterSettings(ShapeSettings):
    """Workers that are all alike, each with one device; and the shape of their one model, where no
    ``[[model]]`` says more.

    ``device``: a preset of ``costs.presets``, or a file that ``tenfold doctor --calibrate`` wrote.
    ``memory``: of each worker, as "80GiB", for weights, keys and values; empty takes 90 % of the
    preset's. ``link`` and ``disk``: bytes a second at which weights come from the host's memory and
    from a disk; 0 takes the preset's. ``router_ms``: the router's own time for a request; requests
    wait for it in turn. ``learn``: the scheduler learns what steps cost from the steps it sees, as
    a server's does; otherwise it knows. ``leaps``: steps that decide nothing are taken several at a
    time; the outcome is the same.
    """

    workers: int = 1
    device: str = "a100-80g"
    memory: str = ""
    link: float = 0.0
    disk: float = 0.0
    block_tokens: int = 16
    max_running: int = 64
    max_step_tokens: int = 2048
    itl_target: float = 0.2
    prefill_share: float = 0.25
    prefix_cache: bool = True
    router_ms: float = 0.0
    learn: bool = False
    leaps: bool = True


@dataclass(slots=True)
class ModelSettings(ShapeSettings):
    """One model of several, or with ``count`` above 1 so many alike, called ``name-0`` and on.

    ``shape``: a name of ``costs.shapes`` that gives what the table does not. ``parts``:
    tensor-parallel ones, on a device each: a request runs on all of them, each with its share of
    the work at its own device's pace, and has a token when the last part has it; what they tell
    each other takes no time. ``ttft`` and ``tpot``: targets in seconds, 0 for none. ``kv_limit``:
    as "4GiB". The others are as in ``core.settings.ModelSetup``."""

    name: str = "model"
    count: int = 1
    shape: str = ""
    parts: int = 1
    ttft: float = 0.0
    tpot: float = 0.0
    pin: bool = False
    ttl: float | None = None
    floor: str = ""
    kv_limit: str = ""
    evict_cost: float = 1.0
    asleep: bool = False

    def names(self) -> list[str]:
        if self.count == 1:
            return [self.name]
        return [f"{self.name}-{number}" for number in range(self.count)]

    @property
    def part(self) -> ModelShape:
        """The shape of each of its parts."""
        whole = self.model
        return ModelShape(
            whole.parameters / self.parts,
            whole.weight_bytes / self.parts,
            whole.kv_token_bytes / self.parts,
            whole.attention_width / self.parts,
        )


@dataclass(slots=True)
class RunSettings:
    """``seconds`` of simulated time, of which the first ``warm_up`` count for nothing. ``drain``:
    nothing new is asked after ``seconds``, and the run ends when all is answered. ``seed`` draws
    everything there is to draw."""

    seconds: float = 600.0
    warm_up: float = 0.0
    seed: int = 0
    drain: bool = False


@dataclass(slots=True)
class Simulation:
    """A whole simulation. ``weights``: clients' shares, 1 where nothing is said. ``queue``: how
    much may wait before requests are refused; None for anything. ``models``: empty for one model
    of the cluster's shape on every worker; residency, deadlines and placement are of several."""

    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    run: RunSettings = field(default_factory=RunSettings)
    workloads: list[Workload] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    queue: QueueSettings | None = None
    models: list[ModelSettings] = field(default_factory=list)
    residency: ResidencySettings = field(default_factory=ResidencySettings)
    deadlines: DeadlineSettings = field(default_factory=DeadlineSettings)
    placement: PlacementSettings = field(default_factory=PlacementSettings)

    @property
    def by_name(self) -> dict[str, ModelSettings]:
        """Every model, those of a ``count`` one by one."""
        return {name: one for one in self.models for name in one.names()}
