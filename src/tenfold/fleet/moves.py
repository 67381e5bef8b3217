"""Where one worker's models have their weights, as far as is known, and who waits for them to move.

Knows nothing of why a model should move, nor of how a worker is kept alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from tenfold.core.errors import Conflict, DeadlineExceeded, TenfoldError, WorkerLost, from_code
from tenfold.core.messages import (
    Command,
    DeviceStats,
    LoadModel,
    ModelMoved,
    ResidencyState,
    SleepModel,
    WakeModel,
)


@dataclass(slots=True, eq=False)
class _Waiting:
    """``command``: what was sent; ``answer``: its ModelMoved."""

    command: SleepModel | WakeModel
    answer: asyncio.Future[ModelMoved]

    def fail(self, error: TenfoldError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Moves:
    """The models of one worker. ``states``: of those that are loaded; ``held``: how those were put
    to sleep that sleep until they are told to wake, also by a worker that comes back."""

    def __init__(self, send: Callable[[Command], None]) -> None:
        self.states: dict[str, ResidencyState] = {}
        self.held: dict[str, SleepModel] = {}
        self._send = send
        self._slept: set[str] = set()
        self._waiting: list[_Waiting] = []

    # --- asked for ------------------------------------------------------------------------------
    async def sleep(self, command: SleepModel, seconds: float) -> ModelMoved:
        """Until the model sleeps. Raises what the worker says, WorkerLost, Conflict where it is
        woken meanwhile, and DeadlineExceeded after ``seconds``: it sleeps all the same, later."""
        if command.hold:
            self.held[command.name] = command
        else:
            self.held.pop(command.name, None)
        late = f"{command.name} is still busy after {seconds:g} s; it sleeps when its requests "
        late += "are done, or at once with force"
        try:
            return await self._ask(command, seconds, late)
        except (DeadlineExceeded, WorkerLost):  # it is to sleep all the same
            raise
        except TenfoldError:
            if self.held.get(command.name) is command:
                del self.held[command.name]
            raise

    async def wake(self, command: WakeModel, seconds: float) -> ModelMoved:
        """Until the model's weights are there. Raises what the worker says, WorkerLost, and
        DeadlineExceeded after ``seconds``."""
        self.held.pop(command.name, None)
        late = f"{command.name} is not awake after {seconds:g} s; it wakes when there is memory "
        late += "for it (tenfold why says what keeps it)"
        return await self._ask(command, seconds, late)

    async def _ask(self, command: SleepModel | WakeModel, seconds: float, late: str) -> ModelMoved:
        waiting = _Waiting(command, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._send(command)
        try:
            async with asyncio.timeout(seconds):
                return await waiting.answer
        except TimeoutError:
            raise DeadlineExceeded(late) from None
        finally:
            self._waiting.remove(waiting)

    # --- told -----------------------------------------------------------------------------------
    def moved(self, event: ModelMoved) -> None:
        """A model's weights came or went, asked for or not."""
        self.states[event.name] = event.state
        awake = event.state in ("resident", "waking")
        if event.state == "waking":
            return
        concerned = [w for w in self._waiting if w.command.name == event.name]
        refused = [w for w in concerned if isinstance(w.command, WakeModel) != awake]
        if event.error:
            for waiting in refused or concerned:
                waiting.fail(from_code(event.code, event.error))
            return
        done = [w for w in concerned if w not in refused]
        for waiting in done:
            if not waiting.answer.done():
                waiting.answer.set_result(event)
        for waiting in refused:
            if done and concerned.index(waiting) < concerned.index(done[-1]):
                waiting.fail(Conflict(f"{event.name} was told otherwise meanwhile"))

    def learn(self, stats: DeviceStats) -> None:
        """What the worker says of all its models."""
        for model in stats.models:
            if model.name in self.states:
                self.states[model.name] = model.residency

    def loading(self, command: LoadModel) -> LoadModel:
        """The command, so that a model that slept when its worker was lost does not wake for it."""
        if command.name in self._slept or command.name in self.held:
            return replace(command, options=replace(command.options, asleep=True))
        return command

    def up(self, name: str, *, asleep: bool) -> None:
        """A model is loaded; it may have said already where its weights are."""
        asleep = asleep or name in self._slept or name in self.held
        self.states.setdefault(name, "cold" if asleep else "resident")
        self._slept.discard(name)
        if name in self.held:
            self._send(self.held[name])

    def forget(self, name: str, error: TenfoldError) -> None:
        """A model is unloaded; whoever waits for it is told ``error``."""
        self.states.pop(name, None)
        self.held.pop(name, None)
        self._slept.discard(name)
        for waiting in self._waiting:
            if waiting.command.name == name:
                waiting.fail(error)

    def lost(self, error: TenfoldError) -> None:
        """The worker is gone, with all it had; whoever waits is told ``error``."""
        self._slept |= {name for name, state in self.states.items() if state in ("cold", "host")}
        self.states.clear()
        for waiting in self._waiting:
            waiting.fail(error)
