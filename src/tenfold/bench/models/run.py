"""The whole comparison of ways to share memory: cells of timed runs, each kept as soon as it is
there.

Modes take turns within a load and a seed, so that a machine whose speed drifts is unkind to all of
them. A run that is stopped goes on where it ended. Does not print.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tenfold.bench.models.alone import Alone, budgets, measure_alone
from tenfold.bench.models.curves import sustained, trace_of_load
from tenfold.bench.models.extra import constant_rates, measure_wakes
from tenfold.bench.models.modes import COMPETING, ELASTIC, FASTER, MODES, Mode, chosen
from tenfold.bench.models.point import Before, Machine, Target, run_point
from tenfold.bench.models.report import half_load, rivals
from tenfold.bench.models.store import Store
from tenfold.core.errors import ConfigError
from tenfold.core.settings import DeviceSettings
from tenfold.fleet.workloads.bursty import Bursty
from tenfold.fleet.workloads.trace import Asked

CELLS = ("targets", "A", "B", "wake", "overhead", "burst", "margin", "idle", "tau", "simulated")

UNTIL = 0.4
"""A mode whose attainment falls below is not run at higher loads."""

MARGINS = (0.5, 1.0, 1.5, 2.0, 3.0)
IDLE_SECONDS = tuple(seconds / FASTER for seconds in (5.0, 15.0, 30.0, 45.0, 80.0, 120.0))

OVERHEAD_ROUNDS = 3
"""So many times as many as elsewhere: a few hundredths are to be seen."""

BASE_SECONDS = 3600.0
"""Of the trace that points are cut from."""


@dataclass(slots=True)
class Plan:
    """``loads``: requests a second, ascending. A point lasts ``seconds`` and until ``requests``
    came. ``sweep_load``: that of sweeps; 0: where ours still answers nine tenths in time.
    ``modes``: in place of those that compete in a budget."""

    cells: Sequence[str] = CELLS
    modes: Sequence[str] = ()
    seeds: int = 3
    loads: Sequence[float] = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
    seconds: float = 60.0
    requests: int = 500
    rounds: int = 10
    sweep_load: float = 0.0
    bursty: Bursty = field(
        default_factory=lambda: Bursty(
            rate=2.0, burst=120.0 / FASTER, prompts=0.5, outputs=0.1, longest=512
        )
    )

    def check(self) -> None:
        """Raises ConfigError for a cell or mode that does not exist."""
        for cell in self.cells:
            if cell not in CELLS:
                raise ConfigError(f"no cell is named {cell!r}; there are: {', '.join(CELLS)}")
        chosen(self.modes)
        if not self.loads or sorted(self.loads) != list(self.loads) or self.loads[0] <= 0:
            raise ConfigError(f"loads must ascend from above 0 and are {list(self.loads)}")

    def key(self, machine: Machine) -> dict[str, Any]:
        """What all measurements of one file share."""
        return {
            "fleet": [asdict(one) for one in machine.fleet],
            "bursty": asdict(self.bursty),
            "requests": self.requests,
            "seconds": self.seconds,
            "max_running": machine.max_running,
            "page_bytes": machine.page_bytes,
            "backend": machine.backend,
            "threads": machine.threads,
        }


class Comparison:
    """``before`` is called right before each timed run, ``say`` with what is known after it."""

    def __init__(
        self,
        plan: Plan,
        machine: Machine,
        store: Store,
        before: Before,
        say: Callable[[str], None],
    ) -> None:
        plan.check()
        self.plan = plan
        self.machine = machine
        self.store = store
        self.before = before
        self.say = say
        names = tuple(one.name for one in machine.fleet)
        self._bursty = replace(plan.bursty, named=names)
        self._base: dict[int, list[Asked]] = {}

    def run(self) -> Iterator[str]:
        """Every cell that is asked for, its name when it is done."""
        cells: dict[str, Callable[[], object]] = {
            "targets": self.alone,
            "A": lambda: self.curves("A"),
            "B": lambda: self.curves("B"),
            "wake": self.wakes,
            "overhead": self.overhead,
            "burst": self.burst,
            "margin": lambda: self.sweep("margin", MARGINS),
            "idle": lambda: self.sweep("idle", IDLE_SECONDS),
            "tau": lambda: self.simulate("tau"),
            "simulated": lambda: self.simulate("simulated"),
        }
        for name in self.plan.cells:
            cells[name]()
            yield name

    # --- what everything needs ------------------------------------------------------------------
    def base(self, seed: int) -> list[Asked]:
        """The trace of a seed, of which points are cut."""
        if seed not in self._base:
            self._base[seed] = self._bursty.rows(seed, BASE_SECONDS)
        return self._base[seed]

    def alone(self) -> dict[str, Alone]:
        """Every model by itself; measured once a file."""
        known = self.store.part("alone")
        if set(known) != {one.name for one in self.machine.fleet}:
            for name, one in measure_alone(self.machine, self.base(0), self.before):
                self.store.add("alone", name, one.to_json())
                self.say(f"{name} alone: TTFT p95 {1000 * one.ttft:.0f} ms, weights "
                         f"{one.weights >> 20} MiB")  # fmt: skip
            self.store.add("budgets", "bytes", budgets(self._alone(), self.base(0),
                                                       self.machine.max_running))  # fmt: skip
        return self._alone()

    def _alone(self) -> dict[str, Alone]:
        return {name: Alone.from_json(one) for name, one in self.store.part("alone").items()}

    def targets(self) -> dict[str, Target]:
        return {name: one.target for name, one in self.alone().items()}

    def memory(self, budget: str) -> int:
        self.alone()
        return int(self.store.part("budgets")["bytes"][budget])

    # --- curves ---------------------------------------------------------------------------------
    def curves(self, budget: str) -> None:
        """Attainment over load of every mode that competes in a budget, and of ours where the best
        baseline reaches a half."""
        going = chosen(self.plan.modes or COMPETING[budget])
        for load in self.plan.loads:
            for seed in range(self.plan.seeds):
                for mode in list(going):
                    if not self.point(budget, mode, load, seed)["fits"]:
                        going.remove(mode)
            going = [mode for mode in going if self._mean(budget, mode, load) >= UNTIL]
            if not going:
                break
        if half := half_load(self.store.body["parts"], budget):
            for seed in range(self.plan.seeds):
                self.point(budget, MODES[ELASTIC], half, seed)

    def _mean(self, budget: str, mode: Mode, load: float) -> float:
        points = self.store.part(budget)
        found = [points[f"{mode.name}|{load:g}|{seed}"] for seed in range(self.plan.seeds)]
        return float(sum(one["attainment"] for one in found)) / len(found)

    def point(self, budget: str, mode: Mode, load: float, seed: int) -> dict[str, Any]:
        """One point of a curve; measured unless the file has it."""
        key = f"{mode.name}|{load:g}|{seed}"
        known = self.store.part(budget)
        if key not in known:
            device = self.machine.device(self.memory(budget), mode)
            self._measure(budget, key, device, load, seed, asleep=budget == "B")
        found: dict[str, Any] = known[key]
        return found

    def _measure(
        self, part: str, key: str, device: DeviceSettings, load: float, seed: int, *, asleep: bool
    ) -> None:
        plan = self.plan
        rows = trace_of_load(self.base(seed), load, plan.seconds, plan.requests, seed)
        point = run_point(
            self.machine, device, self.targets(), rows, seed=seed, asleep=asleep,
            before=self.before, what=f"{part}: {key}",
        )  # fmt: skip
        self.store.add(part, key, point.to_json())
        said = f"{point.attainment:.1%} of {point.asked}" if point.fits else "does not fit"
        self.say(f"{part}: {key}: {said}")

    # --- beside the curves ----------------------------------------------------------------------
    def wakes(self) -> None:
        known = self.store.part("wake")
        if set(known) != {one.name for one in self.machine.fleet}:
            mode = MODES[ELASTIC]
            for name, one in measure_wakes(self.machine, mode, self.plan.rounds, self.before):
                self.store.add("wake", name, one.to_json())
                self.say(f"waking {name}: {1000 * one.to_json()['beyond_p50']:.0f} ms beyond "
                         "prefill")  # fmt: skip

    def overhead(self) -> None:
        """Throughput at a constant load with memory for all: elastic and static by turns."""
        modes = [MODES[ELASTIC], MODES["static"]]
        if {mode.name for mode in modes} - set(self.store.part("overhead")):
            memory, rounds = self.memory("ample"), OVERHEAD_ROUNDS * self.plan.rounds
            for name, rates in constant_rates(
                self.machine, modes, memory, rounds, self.before
            ).items():
                self.store.add("overhead", name, rates)
                self.say(f"constant load, {name}: {sum(rates) / len(rates):.1f} tokens/s")

    def burst(self) -> None:
        from tenfold.bench.models.burst import measure_burst

        for name, found in measure_burst(self.machine, self.plan.rounds, self.before):
            self.store.add("burst", name, found)

    def sweep(self, what: str, values: Sequence[float]) -> None:
        """Ours in budget B at one load, with one setting changed."""
        load = self.plan.sweep_load or self._sweep_load()
        mode = MODES[ELASTIC]
        for value in values:
            for seed in range(self.plan.seeds):
                key = f"{value:g}|{load:g}|{seed}"
                if key in self.store.part(what):
                    continue
                device = self.machine.device(self.memory("B"), mode)
                if what == "margin":
                    device.deadlines = replace(device.deadlines, margin=value)
                else:
                    device.residency = replace(device.residency, idle_seconds=value, evict="always")
                self._measure(what, key, device, load, seed, asleep=True)

    def _sweep_load(self) -> float:
        curves = [one for one in rivals(self.store.body["parts"], "B") if one.name == ELASTIC]
        if not curves:
            return self.plan.loads[len(self.plan.loads) // 2]
        found = [sustained(curve, 0.9) for curve in curves[0].curves]
        return round(sum(found) / len(found), 1) or self.plan.loads[0]

    def simulate(self, what: str) -> None:
        from tenfold.bench.models.simulated import measure_devices, measure_thresholds

        measure = measure_devices if what == "simulated" else measure_thresholds
        known = self.store.part(what)
        for key, found in measure(self.plan.seeds, set(known), self.say):
            self.store.add(what, key, found)
