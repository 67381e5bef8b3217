"""One call in flight, as the service keeps it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tenfold.core.errors import DeadlineExceeded, TenfoldError, WorkerLost
from tenfold.core.messages import TokenOutput
from tenfold.core.types import Constraint, EngineRequest
from tenfold.fleet.supervisor import Supervisor
from tenfold.fleet.types import GenerateRequest, RequestInfo
from tenfold.scheduling.limits import Grant

CallEvent = tuple[int, TokenOutput] | TenfoldError | Literal["moved"] | None
"""Output of a choice; what ended the call; "moved": no worker has it, send what is left of it;
None: the worker died, send everything again."""


MOST_SUBMISSIONS = 2
"""How often a call is given to a worker: one that kills its worker must not do so for ever."""

LOST_TWICE = "the worker died twice on this request"


@dataclass(slots=True, eq=False)
class Call:
    """A request's engine requests and what comes back for them.

    ``parts``: the choice of each engine request that has not ended. ``finished``: choices whose
    last output has come. ``submitted``: a worker has them, that of ``supervisor``; ``ran`` and
    ``answered``: whether they began to run there, and the tokens that came. ``sent_token``: the
    client has seen output, so the call can no longer start anew. ``grant``: its room in the hard
    limits. ``made``: tokens of each choice since it started, the last time it did; ``answers``:
    these tokens, where the call may be moved.
    """

    request: GenerateRequest
    prompt: list[int]
    began: float
    sends: list[EngineRequest]
    parts: dict[str, int]
    grant: Grant
    events: asyncio.Queue[CallEvent] = field(default_factory=asyncio.Queue)
    state: Literal["waiting", "running"] = "waiting"
    supervisor: Supervisor | None = None
    submitted: bool = False
    submissions: int = 0
    ran: bool = False
    answered: int = 0
    sent_token: bool = False
    made: Counter[int] = field(default_factory=Counter)
    cached: int = 0
    queue_seconds: float | None = None
    answers: dict[int, list[int]] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)

    @property
    def id(self) -> str:
        """What the router knows it by."""
        return self.sends[0].id

    def alarm(self, now: float) -> asyncio.TimerHandle | None:
        """The engine enforces a request's deadline; this one holds even if the worker is away. One
        timer a call: one a token would be a good part of what a token costs here."""
        timeout = self.request.timeout
        if timeout is None:
            return None
        late = self.began + timeout - now + 1.0
        error = DeadlineExceeded(f"the request's time of {timeout:g} s ran out", param="timeout")
        loop = asyncio.get_running_loop()
        return loop.call_later(max(0.0, late), self.events.put_nowait, error)

    def given_to(self, supervisor: Supervisor) -> None:
        """A worker has it now."""
        self.supervisor = supervisor
        self.submitted, self.ran, self.answered = True, False, 0
        self.submissions += 1

    def move(self, ids: dict[str, str]) -> None:
        """It leaves its worker alive, to go on at another one under new ``ids``: what the old one
        still says of it is about nobody. Choices that have tokens are continued behind them."""
        for at, send in enumerate(self.sends):
            if send.id not in ids:
                continue
            index, new = self.parts.pop(send.id), ids[send.id]
            if send.id in self.started:
                self.started.add(new)
            self.parts[new] = index
            made = self.answers.get(index, [])
            prompt = [*self.prompt, *made]
            # A worker in this process may hold the old one.
            self.sends[at] = replace(send, id=new, prompt=prompt, continued=len(made))
        self.submitted = False
        self.submissions -= 1

    def to_move(self) -> list[str]:
        """Its engine requests whose last output has not come."""
        return [id for id, index in self.parts.items() if index not in self.finished]

    def lost(self) -> None:
        """The worker died. An answer that is complete here is still delivered, one that the client
        has seen part of ends, and what had sent nothing starts anew, if it may. What was to end the
        call still ends it."""
        self.submitted = False
        unfinished = set(self.parts.values()) - self.finished
        if not unfinished:
            return
        self.state = "waiting"
        if self.sent_token:
            model = self.request.model
            self.events.put_nowait(WorkerLost(f"the worker of {model} died while it was answering"))
            return
        over: TenfoldError | None = None
        while not self.events.empty():
            event = self.events.get_nowait()
            over = event if isinstance(event, TenfoldError) else over
        for index in self.parts.values():
            self.finished.discard(index)
            del self.made[index]
            self.answers.pop(index, None)
        self.sends = [replace(send, prompt=self.prompt, continued=0) for send in self.sends]
        if over is None and self.submissions >= MOST_SUBMISSIONS:
            over = WorkerLost(LOST_TWICE)
        self.events.put_nowait(over)

    @property
    def generated(self) -> int:
        return self.made.total()

    def info(self, now: float) -> RequestInfo:
        return RequestInfo(
            id=self.request.id,
            client=self.request.client,
            model=self.request.model,
            state=self.state,
            prompt_tokens=len(self.prompt),
            generated=self.generated,
            age=now - self.began,
        )


def engine_requests(
    request: GenerateRequest,
    prompt: list[int],
    constraint: Constraint | None,
    began: float,
    ids: Sequence[str],
) -> list[EngineRequest]:
    """One engine request a choice; each draws from a seed of its own."""
    sends = []
    for index, id in enumerate(ids):
        sampling = replace(request.sampling, n=1, constraint=constraint)
        if sampling.seed is not None:
            sampling.seed = (sampling.seed + index) % (1 << 63)
        sends.append(
            EngineRequest(
                id=id,
                model=request.model,
                client=request.client,
                prompt=prompt,
                sampling=sampling,
                arrival=began,
                namespace=request.cache_salt,
                priority=request.priority,
                deadline=began + request.timeout if request.timeout else None,
                itl_target=request.itl_target,
                ttft_target=request.ttft_target,
                keep_alive=request.keep_alive,
            )
        )
    return sends
