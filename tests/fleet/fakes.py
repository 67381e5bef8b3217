"""A worker that does what a test tells it to: no process, no thread, no engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tenfold.core.messages import (
    AskDecisions,
    AskStats,
    Command,
    DecisionReport,
    DeviceStats,
    Event,
    Generate,
    LoadModel,
    ModelDown,
    ModelMoved,
    ModelUp,
    RequestStarted,
    SleepModel,
    StepDone,
    TokenOutput,
    UnloadModel,
    WakeModel,
    WorkerUp,
)
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import FinishReason, ModelFacts
from tenfold.fleet.workers import OnEvent, OnExit

Answer = Callable[["FakeWorker", Command], None]


class FakeWorker:
    """``got``: every command. ``answer`` says what comes of one; by default models load at once
    and requests wait for the test."""

    def __init__(self, answer: Answer) -> None:
        self.got: list[Command] = []
        self.answer = answer
        self.alive = False

    async def start(self, on_event: OnEvent, on_exit: OnExit) -> None:
        self.on_event, self.on_exit, self.alive = on_event, on_exit, True
        self.say(WorkerUp("cpu:0", 1, 1 << 20))

    def send(self, command: Command) -> None:
        if self.alive:
            self.got.append(command)
            self.answer(self, command)

    async def stop(self) -> None:
        self.alive = False

    def say(self, event: Event) -> None:
        """Heard at the loop's next turn, as from a real worker; a dead one's words are lost."""
        asyncio.get_running_loop().call_soon(lambda: self.alive and self.on_event(event))

    def die(self) -> None:
        if self.alive:
            self.alive = False
            self.on_exit(-9)

    def asked(self, kind: type[Command]) -> list[Command]:
        return [command for command in self.got if isinstance(command, kind)]

    def make(self, tokens: list[int], finish: FinishReason | None = None, part: int = -1) -> None:
        """Output for the ``part``-th request that was sent here."""
        command = self.asked(Generate)[part]
        assert isinstance(command, Generate)
        id = command.request.id
        started, output = RequestStarted(id, 0.0, 0), TokenOutput(id, tokens, finish)
        self.on_event(StepDone(command.request.model, 0.0, [started], [output]))


def facts(name: str) -> ModelFacts:
    return ModelFacts(name, "generate", "llama", 512, 400, 8, 1, 1, 1)


def obliging(worker: FakeWorker, command: Command) -> None:
    """Loads and unloads, puts to sleep and wakes what it is told to."""
    match command:
        case LoadModel(name):
            worker.say(ModelUp(facts(name), 0.0))
        case UnloadModel(name):
            worker.say(ModelDown(name))
        case AskStats(id):
            worker.say(DeviceStats(id, "cpu:0", 1, 1, 0, 0, 0))
        case SleepModel(name, to):
            worker.say(ModelMoved(name, to))
        case WakeModel(name):
            worker.say(ModelMoved(name, "resident"))
        case AskDecisions(id):
            worker.say(DecisionReport(id, "cpu:0"))


class Fakes:
    """Makes fake workers and keeps them; ``last`` is the one in service."""

    def __init__(self, answer: Answer = obliging) -> None:
        self.answer = answer
        self.made: list[FakeWorker] = []
        self.broken = 0

    def __call__(self, settings: DeviceSettings) -> FakeWorker:
        if self.broken:
            self.broken -= 1
            raise OSError("no more processes")
        self.made.append(FakeWorker(self.answer))
        return self.made[-1]

    @property
    def last(self) -> FakeWorker:
        return self.made[-1]
