"""Where the models of a simulated fleet live: which workers hold them, and how they move.

What decides is what decides in a server: ``scheduling.placement.placer``. A model that moves is
brought to its new worker while the old one goes on; when it is there, new requests go to it and
those that wait are sent there, and the old worker answers what it began and lets it sleep. Models
of several parts stay where they were put. Does not know who asks for them, nor what a step costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tenfold.core.clock import VirtualClock
from tenfold.core.errors import ConfigError, OutOfMemory
from tenfold.core.messages import Command, ModelMoved, SleepModel, WakeModel
from tenfold.fleet.simulator.settings import ModelSettings, Simulation
from tenfold.fleet.simulator.worker import HeldModel, SimulatedWorker
from tenfold.scheduling.placement.base import PlaceDevice, PlacedModel
from tenfold.scheduling.placement.placer import Placer
from tenfold.scheduling.placement.rates import Rates

Send = Callable[[SimulatedWorker, Command, float], None]
"""Give a worker a command at a time."""

SendOn = Callable[[str, SimulatedWorker, float], None]
"""Send a model's requests that wait at a worker to where it is now, at a time."""

GIVE_UP_SECONDS = 30.0
"""A model that found no room at its new worker for so long stays where it is."""

LEAST_TOKENS = 256
"""Keys and values that a model must have room for to run."""

SLEEPERS = ("elastic", "swap", "ttl", "cold")
"""Residency modes in which models sleep, so that more may be held than fit at once."""


@dataclass(slots=True)
class _Move:
    source: str
    target: str
    began: float


class Homes:
    """The workers of each model. With placement "replicate" every worker holds every model."""

    def __init__(
        self,
        simulation: Simulation,
        workers: Mapping[str, SimulatedWorker],
        held: Mapping[str, HeldModel],
    ) -> None:
        self.send: Send = _nobody
        self.send_on: SendOn = _nobody
        """Both are set by who runs the workers."""
        self.moves = 0
        """That were begun and carried through."""
        self._simulation = simulation
        self._models = simulation.by_name
        self._workers = workers
        self._held = held
        self._clock = VirtualClock()
        self._placer = (
            None
            if simulation.placement.policy == "replicate"
            else Placer(simulation.placement, self._clock)
        )
        window = simulation.placement.window
        self._rates, self._busy, self._lacked = Rates(window), Rates(window), Rates(window)
        """Of tokens and of microseconds of steps, by model; of preemptions, by worker."""
        self._current: dict[str, tuple[str, ...]] = {}
        self._moving: dict[str, _Move] = {}
        self._devices = [
            PlaceDevice(name, worker.device.capacity_bytes()) for name, worker in workers.items()
        ]

    @property
    def period(self) -> float:
        """Seconds between two looks at placement; 0: there is none to look at."""
        return self._simulation.placement.period if self._placer is not None else 0.0

    @property
    def replicated(self) -> bool:
        return self._placer is None

    def settle(self) -> None:
        """Before anything runs. Raises ConfigError for a model that no worker can hold."""
        if self._placer is None:
            for name, model in self._models.items():
                if model.parts > 1:
                    raise ConfigError(
                        f"{name} has {model.parts} parts and placement.policy is replicate: choose "
                        "static, paper or balanced"
                    )
                for worker in self._workers.values():
                    self._hold(name, worker)
                self._current[name] = tuple(self._workers)
            return
        found = self._placer.homes([self._placed(name) for name in self._models], self._devices)
        for why in found.hopeless.values():
            raise ConfigError(f"{why}; give more workers or more memory")
        self._current = dict(found.placement)
        # Those that are to sleep come last: they need no room.
        for name in sorted(self._models, key=lambda name: name in found.asleep):
            for where in self._current[name]:
                self._hold(name, self._workers[where], asleep=name in found.asleep)

    def of(self, model: str) -> tuple[str, ...]:
        """The workers that requests for a model go to: all of them, of a model in parts; else one
        of them."""
        return self._current[model]

    def _hold(self, name: str, worker: SimulatedWorker, *, asleep: bool = False) -> None:
        """Have a worker hold a model, asleep where it has no room. Raises ConfigError where models
        do not sleep."""
        if name in worker.instances:
            return
        model = self._held[name]
        sleeps = self._simulation.residency.mode in SLEEPERS
        try:
            if not asleep and not (sleeps and self._full(worker, model)):
                worker.attach(model)
            else:
                worker.attach(replace(model, options=replace(model.options, asleep=True)))
        except OutOfMemory as error:
            raise ConfigError(f"{worker.name}: {error.message}") from error

    def _full(self, worker: SimulatedWorker, model: HeldModel) -> bool:
        page = worker.device.settings.page_bytes
        return worker.device.budget().free * page < 1.02 * model.shape.weight_bytes + 2 * page

    def _placed(self, name: str) -> PlacedModel:
        model, page = self._models[name], self._workers[next(iter(self._workers))].device.settings
        now = self._clock.now()
        weights = -(-round(model.part.weight_bytes) // page.page_bytes) * page.page_bytes
        return PlacedModel(
            name,
            weights * model.parts,
            token_rate=self._rates.rate(name, now),
            token_bytes=model.kv_token_bytes,
            tpot=model.tpot or self._simulation.deadlines.tpot,
            parts=model.parts,
            least_bytes=LEAST_TOKENS * model.kv_token_bytes,
            fixed=model.pin or (model.parts > 1 and name in self._current),
            busy=model.parts * self._busy.rate(name, now) / 1e6,
        )

    # --- while it runs --------------------------------------------------------------------------
    def asked(self, name: str, now: float) -> None:
        """A request for a model is about to be sent: one that sleeps may wake elsewhere."""
        home = self._current[name][0]
        if self._placer is None or self._models[name].parts > 1 or name in self._moving:
            return
        if self._simulation.residency.mode not in SLEEPERS:
            return
        if self._awake(name) or self._works(name):
            return
        self._clock.move_to(now)
        models, idle = self._claims()
        best = self._placer.activate(self._placed(name), models, self._devices, self._current, idle)
        if best is not None and best != home:
            self._hold(name, self._workers[best], asleep=True)
            self._current[name] = (best,)

    def _claims(self) -> tuple[list[PlacedModel], set[str]]:
        """The models that have memory or want it, and those of them that would sleep for others."""
        wants = {n for n in self._models if n in self._moving or self._works(n)}
        awake = {n for n in self._models if self._awake(n)}
        sleeps = self._simulation.residency.mode in SLEEPERS
        idle = {n for n in awake - wants if sleeps and not self._models[n].pin}
        return [self._placed(n) for n in self._models if n in wants or n in awake], idle

    def _awake(self, name: str) -> bool:
        return self._workers[self._current[name][0]].engine.residents.awake(name)

    def _works(self, name: str) -> bool:
        return self._workers[self._current[name][0]].instances[name].has_work

    def look(self, now: float) -> None:
        """Every ``period``: read rates, and begin what moves pay."""
        assert self._placer is not None
        self._clock.move_to(now)
        for name, home in self._current.items():
            for where, worker in self._workers.items():
                if name in worker.instances and (where in home[:1] or self._models[name].parts < 2):
                    totals = worker.instances[name].totals
                    count = totals.prompt_tokens + totals.generated_tokens
                    self._rates.read(name, where, count, now)
                    self._busy.read(name, where, round(1e6 * totals.step_seconds), now)
        devices = [replace(one, pressed=self._lacks(one.name, now)) for one in self._devices]
        self._give_up(now)
        models, idle = self._claims()
        models = [replace(m, fixed=m.fixed or m.name in self._moving) for m in models]
        for move in self._placer.look(models, devices, self._current, idle).moves:
            if move.source is not None and self._models[move.model].parts == 1:
                self._begin(move.model, move.source, move.target, now)

    def _lacks(self, worker: str, now: float) -> bool:
        """Whether anything was preempted there of late."""
        batchers = [instance.batcher for instance in self._workers[worker].instances.values()]
        self._lacked.read(worker, worker, sum(one.preemptions for one in batchers), now)
        return self._lacked.rate(worker, now) > 0

    def _begin(self, name: str, source: str, target: str, now: float) -> None:
        self._hold(name, self._workers[target], asleep=True)
        if not self._workers[source].engine.residents.awake(name):
            self._arrived(name, source, target, now)
            return
        self._moving[name] = _Move(source, target, now)
        self.send(self._workers[target], WakeModel(name), now)

    def heard(self, worker: str, event: ModelMoved, now: float) -> None:
        """A model woke or fell asleep somewhere: perhaps one that moves has arrived."""
        move = self._moving.get(event.name)
        if move is None or worker != move.target or event.state != "resident":
            return
        del self._moving[event.name]
        self._arrived(event.name, move.source, move.target, now)
        self.send(self._workers[move.source], SleepModel(event.name), now)

    def _give_up(self, now: float) -> None:
        for name, move in list(self._moving.items()):
            if now - move.began > GIVE_UP_SECONDS:
                del self._moving[name]
                self.send(self._workers[move.target], SleepModel(name), now)
                assert self._placer is not None
                self._placer.moved(name)

    def _arrived(self, name: str, source: str, target: str, now: float) -> None:
        """From now on its requests go to the target, those that wait included."""
        assert self._placer is not None
        self._current[name] = (target,)
        self.moves += 1
        self._placer.moved(name)
        self.send_on(name, self._workers[source], now)


def _nobody(*_: object) -> None:
    """Nothing moves before somebody runs the workers."""


def targets(model: ModelSettings, simulation: Simulation) -> tuple[float, float]:
    """Seconds to the first token and between tokens that are wished; 0 is none."""
    deadlines = simulation.deadlines
    return model.ttft or deadlines.ttft, model.tpot or deadlines.tpot
