"""Workers on the nodes of a Ray cluster: each an actor with an engine, the same as a process here.

Ray is imported when a cluster is joined, not before; it needs the ``ray`` extra, here and on the
nodes, where Tenfold and the models' files must be at the same paths. Commands travel as calls of
the actor, numbered because Ray may swap them; events as the answers of one call that is always
open. Each machine has a monotonic clock of its own: times are translated on their way. Knows no
requests; the router's process holds no torch, as always.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from tenfold.core.clock import Clock, SystemClock
from tenfold.core.errors import ConfigError, Unavailable
from tenfold.core.messages import Command, DeviceStats, Event, Generate, StepDone, WorkerUp
from tenfold.core.settings import DeviceSettings
from tenfold.fleet.workers import InlineWorker, OnEvent, OnExit

log = logging.getLogger("tenfold.fleet")

STOP_SECONDS = 10.0
CLOCK_READINGS = 5


class Said(NamedTuple):
    """Events as bytes; ``code`` set: the engine has ended, and these are its last words."""

    data: bytes
    code: int | None = None


class EngineActor:
    """Lives in a process of a node. An async actor: its calls share one event loop."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from tenfold.core import wire

        self._worker = InlineWorker(DeviceSettings.from_dict(settings))
        self._wire = wire
        self._inbox = wire.Inbox()
        self._said: asyncio.Queue[Said] = asyncio.Queue()
        self._early: dict[int, bytes] = {}
        self._next = 0

    async def begin(self) -> None:
        def hear(event: Event) -> None:
            self._said.put_nowait(Said(self._wire.encode(event)))

        await self._worker.start(hear, lambda code: self._said.put_nowait(Said(b"", code)))

    async def now(self) -> float:
        """This machine's monotonic clock."""
        return SystemClock().now()

    async def send(self, number: int, data: bytes) -> None:
        """Commands, in the order of their numbers."""
        self._early[number] = data
        while (ready := self._early.pop(self._next, None)) is not None:
            self._next += 1
            for command in self._inbox.take(ready):
                self._worker.send(command)

    async def events(self) -> Said:
        """What was said since the last call; waits until there is something."""
        said = await self._said.get()
        while said.code is None and not self._said.empty():
            more = self._said.get_nowait()
            said = Said(said.data + more.data, more.code)
        return said

    async def stop(self) -> None:
        await self._worker.stop()


@dataclass(slots=True)
class Place:
    """An actor and the node it is on."""

    actor: Any
    node: str


class RayCluster:
    """A connection to a cluster, and which of its nodes has which of our workers."""

    def __init__(self, address: str, device: DeviceSettings, workers: int = 0) -> None:
        """``device``: what each worker is set up with. ``workers`` 0 is one a node. Raises
        ConfigError where Ray is missing, or the cluster, or it has no node."""
        self._ray = _import_ray()
        self._device = device
        try:
            self._ray.init(address=address, namespace="tenfold", log_to_driver=True)
        except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError, ...
            raise ConfigError(
                f"there is no Ray cluster at {address!r}: {error}; start one with `ray start "
                "--head`, or name its address"
            ) from error
        nodes = self._nodes()
        if not nodes:
            raise ConfigError(f"the Ray cluster at {address!r} has no node that is alive")
        self._count = workers or len(nodes)
        self._most = -(-self._count // len(nodes))
        self._where: dict[str, str] = {}

    def devices(self) -> list[DeviceSettings]:
        """One for each worker: "ray:0", "ray:1", …"""
        return [replace(self._device, name=f"ray:{number}") for number in range(self._count)]

    def worker(self, settings: DeviceSettings) -> RayWorker:
        """``make_worker`` of a service."""
        return RayWorker(settings, self)

    def close(self) -> None:
        self._ray.shutdown()

    def _nodes(self) -> list[str]:
        return sorted(node["NodeID"] for node in self._ray.nodes() if node["Alive"])

    def place(self, settings: DeviceSettings) -> Place:
        """A new actor on the node that has the fewest of our workers. Raises Unavailable where
        every node has its part: the one that is missing may come back."""
        here = Counter(self._where.values())
        nodes = [node for node in self._nodes() if here[node] < self._most]
        if not nodes:
            raise Unavailable(
                f"no node of the Ray cluster has room for {settings.name}: each has "
                f"{self._most} of the workers already"
            )
        node = min(nodes, key=lambda node: here[node])
        inside = asdict(replace(settings, name=self._device.name))
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            node_id=node, soft=False
        )
        gpu = self._device.name.startswith("cuda")
        actor = (
            self._ray.remote(EngineActor)
            .options(
                num_cpus=settings.threads,
                num_gpus=1 if gpu else 0,
                scheduling_strategy=strategy,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": str(settings.threads or 1)}},
            )
            .remote(inside)
        )
        self._where[settings.name] = node
        return Place(actor, node)

    def gone(self, name: str, place: Place) -> None:
        """The worker has ended; what is left of its actor is ended, too."""
        self._where.pop(name, None)
        with contextlib.suppress(Exception):  # it may be gone with its node
            self._ray.kill(place.actor)

    def is_loss(self, error: Exception) -> bool:
        """Whether this says that the actor, or its node, is gone."""
        return isinstance(error, self._ray.exceptions.RayError)


class RayWorker:
    """A worker on some node of a cluster."""

    def __init__(
        self, settings: DeviceSettings, cluster: RayCluster, clock: Clock | None = None
    ) -> None:
        self.settings = settings
        self._cluster = cluster
        self._clock = clock or SystemClock()
        self._place: Place | None = None
        self._watching: asyncio.Task[None] | None = None
        self._ahead = 0.0
        """Seconds by which the node's clock is ahead of ours."""
        self._number = 0
        self._waiting: list[Command] | None = []
        """Commands that were given before the actor was there; None since then."""

    async def start(self, on_event: OnEvent, on_exit: OnExit) -> None:
        # On the loop's own thread, which calls the other actors: Ray locked up, now and then, when
        # a second thread made one meanwhile.
        self._place = self._cluster.place(self.settings)
        self._watching = asyncio.create_task(self._watch(self._place, on_event, on_exit))

    async def _watch(self, place: Place, on_event: OnEvent, on_exit: OnExit) -> None:
        """From the actor's beginning to its end."""
        code = 1
        try:
            await _answer(place.actor.begin.remote())
            self._ahead = await self._clock_ahead(place.actor)
            waiting, self._waiting = self._waiting or [], None
            for command in waiting:
                self.send(command)
            code = await self._listen(place.actor, on_event)
        except Exception as error:
            if not self._cluster.is_loss(error):
                log.exception("worker %s failed", self.settings.name)
            log.error("worker %s is lost: %s", self.settings.name, _first_line(error))
        self._place = None
        self._cluster.gone(self.settings.name, place)
        on_exit(code)

    async def _clock_ahead(self, actor: Any) -> float:
        """The best of a few readings: the one that was answered soonest."""
        best: tuple[float, float] | None = None
        for _ in range(CLOCK_READINGS):
            asked = self._clock.now()
            there = await _answer(actor.now.remote())
            took = self._clock.now() - asked
            reading = (took, there - (asked + took / 2))
            best = reading if best is None else min(best, reading)
        assert best is not None
        return best[1]

    async def _listen(self, actor: Any, on_event: OnEvent) -> int:
        from tenfold.core import wire

        inbox = wire.Inbox()
        while True:
            said: Said = await _answer(actor.events.remote())
            for event in inbox.take(said.data):
                on_event(self._here(event))
            if said.code is not None:
                return said.code

    def _here(self, event: Event) -> Event:
        """An event in the words of this machine: its clock, and the worker's name."""
        match event:
            case StepDone():
                event.at -= self._ahead
                for started in event.started:
                    started.at -= self._ahead
            case WorkerUp() | DeviceStats():
                event.device = self.settings.name
        return event

    def _there(self, command: Command) -> Command:
        """A command in the node's time."""
        if not isinstance(command, Generate):
            return command
        request = command.request
        deadline = None if request.deadline is None else request.deadline + self._ahead
        arrival = request.arrival + self._ahead
        return Generate(replace(request, arrival=arrival, deadline=deadline))

    def send(self, command: Command) -> None:
        from tenfold.core import wire

        if self._waiting is not None:
            self._waiting.append(command)
        elif self._place is not None:
            data = wire.encode(self._there(command))
            self._place.actor.send.remote(self._number, data)
            self._number += 1

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        place, self._place = self._place, None
        if place is not None:
            with contextlib.suppress(Exception):  # it may be gone already
                await asyncio.wait_for(_answer(place.actor.stop.remote()), STOP_SECONDS)
            self._cluster.gone(self.settings.name, place)


async def _answer(reference: Any) -> Any:
    """The value of an actor's call, waited for without a thread."""
    return await asyncio.wrap_future(reference.future())


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _import_ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise ConfigError(
            "workers on a Ray cluster need Ray: pip install 'tenfold[ray]', here and on every node"
        ) from error
    return ray
