"""The calls in flight: each is sent to a worker that holds its model, and what workers say of it
becomes its events.

A worker that dies costs only the calls that had already sent a token; the others are queued again,
once, where another worker holds the model at once. Knows tokens, but no text.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from tenfold.core.clock import Clock
from tenfold.core.errors import TenfoldError, Unavailable
from tenfold.core.messages import Abort, Generate, QueuePlace, StepDone
from tenfold.core.types import Constraint
from tenfold.fleet.book import ModelBook
from tenfold.fleet.calls import Call, engine_requests
from tenfold.fleet.places import Places
from tenfold.fleet.routing import Routing
from tenfold.fleet.served import ServedModel
from tenfold.fleet.supervisor import Supervisor
from tenfold.fleet.types import GenerateRequest
from tenfold.scheduling.admission import AdmissionController
from tenfold.scheduling.limits import Grant

RETURN_SECONDS = 10.0
"""So long is waited for a worker that is away."""

MOST_ENDED = 1000
"""Ended requests whose clients' ids are remembered, for the latest admissions of a schedule."""


class Dispatch:
    """All calls of one service that generate. All methods belong to its event loop."""

    def __init__(
        self,
        supervisors: dict[str, Supervisor],
        book: ModelBook,
        places: Places,
        routing: Routing,
        admission: AdmissionController,
        clock: Clock,
    ) -> None:
        self.routing = routing
        self._supervisors = supervisors
        self._book = book
        self._places = places
        self._admission = admission
        self._clock = clock
        self._ids = itertools.count(1)
        self._calls: dict[str, Call] = {}
        """By the engine requests that have not ended."""
        self._ended: dict[str, str] = {}

    def calls(self) -> list[Call]:
        return list({id(call): call for call in self._calls.values()}.values())

    def of(self, device: str) -> list[Call]:
        """Calls that the worker has."""
        return [
            call
            for call in self.calls()
            if call.submitted and call.supervisor is not None and call.supervisor.name == device
        ]

    def at(self, device: str, model: str) -> list[Call]:
        """Calls of the model that the worker has."""
        return [call for call in self.of(device) if call.request.model == model]

    def at_work(self) -> set[tuple[str, str]]:
        """The workers and models that have calls."""
        return {
            (call.supervisor.name, call.request.model)
            for call in self._calls.values()
            if call.submitted and call.supervisor is not None
        }

    # --- a call's life --------------------------------------------------------------------------
    def open(
        self,
        request: GenerateRequest,
        prompt: list[int],
        constraint: Constraint | None,
        began: float,
        grant: Grant,
    ) -> Call:
        """A call that ``close`` must end. Raises what admission says."""
        ids = [f"r{next(self._ids)}" for _ in range(request.sampling.n)]
        sends = engine_requests(request, prompt, constraint, began, ids)
        for done in range(len(ids)):
            try:
                self._admission.admit(request.client, len(prompt), began)
            except TenfoldError:
                for _ in range(done):
                    self._admission.gone(request.client, len(prompt), queued=True)
                raise
        parts = {id: index for index, id in enumerate(ids)}
        call = Call(request, prompt, began, sends, parts, grant)
        self._calls.update(dict.fromkeys(parts, call))
        return call

    async def submit(self, call: Call) -> None:
        """Send to the worker that the router chooses, waiting for one to come back if all that
        hold the model are away. Raises Unavailable if none does."""
        entry = self._book.entry(call.request.model)
        await self.await_holder(entry, self._patience(call))
        self._give(call, entry)

    def _give(self, call: Call, entry: ServedModel) -> None:
        among = frozenset(place.name for place in entry.holders())
        supervisor = self._supervisors[self.routing.choose(call.sends[0], among)]
        for part in call.sends:
            if part.id in call.parts:
                supervisor.send(Generate(part))
        call.given_to(supervisor)

    async def await_holder(self, entry: ServedModel, seconds: float | None = None) -> None:
        """Until a worker that takes requests holds the model. Raises Unavailable if none does in
        ``seconds``, or in as many as a worker may be away."""
        end = self._clock.now() + (RETURN_SECONDS if seconds is None else seconds)
        self._places.asked(entry)
        while not entry.holders():
            places = entry.places
            try:
                await entry.wait_up(max(0.0, end - self._clock.now()))
            except Unavailable:
                if entry.places == places:  # else it was moved meanwhile
                    raise

    def _patience(self, call: Call) -> float:
        if call.request.timeout is None:
            return RETURN_SECONDS
        left = call.began + call.request.timeout - self._clock.now()
        return min(RETURN_SECONDS, max(0.0, left))

    def end_part(self, call: Call, index: int, *, aborted: bool) -> None:
        """A choice is over; ``aborted``: not by the worker's own word."""
        id = next((id for id, i in call.parts.items() if i == index), None)
        if id is None:
            return
        del call.parts[id]
        self._calls.pop(id, None)
        self._ended[id] = call.request.id
        if len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        self._admission.gone(call.request.client, len(call.prompt), queued=id not in call.started)
        call.grant.end(index)
        if aborted and call.supervisor is not None:
            call.supervisor.send(Abort(id))

    def close(self, call: Call) -> None:
        """End what is left of it."""
        for index in list(call.parts.values()):
            self.end_part(call, index, aborted=True)
        self.routing.ended(call.id, call.answered if call.ran else None)
        self._places.call_ended()

    def send_on(self, call: Call) -> None:
        """Take a call from its worker, which lives, and have what is left of it sent to one that
        holds the model now; an answer that has begun goes on where it was."""
        old = call.to_move()
        if not old or call.supervisor is None:
            return
        self.routing.ended(call.id, call.answered if call.ran else None)
        ids = {id: f"r{next(self._ids)}" for id in old}
        for id, new in ids.items():
            call.supervisor.send(Abort(id))
            self._calls[new] = self._calls.pop(id)
            self._ended[id] = call.request.id
        call.move(ids)
        entry = self._book.find(call.request.model)
        if entry is not None and entry.holders():
            self._give(call, entry)
        else:
            call.events.put_nowait("moved")

    # --- what workers say -----------------------------------------------------------------------
    def step_done(self, event: StepDone) -> None:
        for started in event.started:
            call = self._calls.get(started.request_id)
            if call is not None:
                call.ran = True
            if call is not None and started.request_id not in call.started:
                call.started.add(started.request_id)
                call.state = "running"
                call.grant.began(call.parts[started.request_id])
                if call.queue_seconds is None:
                    call.queue_seconds = started.at - call.began
                self._admission.started(call.request.client, len(call.prompt), event.at)
        for output in event.outputs:
            call = self._calls.get(output.request_id)
            if call is not None:
                call.answered += len(output.token_ids)
                index = call.parts[output.request_id]
                call.made[index] += len(output.token_ids)
                if self._places.moves:
                    call.answers.setdefault(index, []).extend(output.token_ids)
                call.grant.output(index, call.made[index])
                if output.finish is not None:
                    call.finished.add(index)
                call.events.put_nowait((index, output))

    def failed(self, id: str, error: TenfoldError) -> None:
        """A worker cannot do what an engine request asks."""
        if id in self._calls:
            self._calls[id].events.put_nowait(error)

    def lost(self, device: str) -> None:
        """A worker died. What had sent a token ends; the rest is queued again, once."""
        for call in self.of(device):
            call.lost()  # one that waits for a worker to come up goes on waiting

    def fail_all(self, error: TenfoldError) -> None:
        for call in self.calls():
            call.events.put_nowait(error)

    def public(self, place: QueuePlace) -> QueuePlace:
        """With the id that its client's request has."""
        id = place.request_id
        call = self._calls.get(id)
        return replace(
            place, request_id=self._ended.get(id, id) if call is None else call.request.id
        )
