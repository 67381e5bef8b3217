"""What a simulation is set up with: plain values, as ``fleet.simulator.config`` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tenfold.core.settings import QueueSettings, RoutingSettings, ScheduleSettings
from tenfold.costs.presets import ModelShape
from tenfold.fleet.workloads.base import Workload


@dataclass(slots=True)
class ClusterSettings:
    """Workers that are all alike, each with one device and one model.

    ``device``: a preset of ``costs.presets``, or a file that ``tenfold doctor --calibrate`` wrote.
    ``memory``: of each worker, as "80GiB", for weights, keys and values; empty takes 90 % of the
    preset's. The model's shape: ``parameters``, ``weight_bits`` of each, ``layers``, ``heads`` (of
    queries), ``kv_heads`` and ``head_dim``, with ``kv_bytes`` for each value of a key.
    ``router_ms``: the router's own time for a request; requests wait for it in turn. ``learn``: the
    scheduler learns what steps cost from the steps it sees, as a server's does; otherwise it knows.
    ``leaps``: steps that decide nothing are taken several at a time; the outcome is the same.
    """

    workers: int = 1
    device: str = "a100-80g"
    memory: str = ""
    parameters: float = 8.03e9
    weight_bits: float = 16.0
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    kv_bytes: float = 2.0
    context: int = 131_072
    block_tokens: int = 16
    max_running: int = 64
    max_step_tokens: int = 2048
    itl_target: float = 0.2
    prefill_share: float = 0.25
    prefix_cache: bool = True
    router_ms: float = 0.0
    learn: bool = False
    leaps: bool = True

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
    much may wait before requests are refused; None for anything."""

    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    run: RunSettings = field(default_factory=RunSettings)
    workloads: list[Workload] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    queue: QueueSettings | None = None
