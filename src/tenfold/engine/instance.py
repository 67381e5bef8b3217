"""One model on one device, ready to step: its pages, its cache, its batcher and its executor.

A generating instance and an encoder answer the same few calls, so the engine's loop treats them
alike. An instance is a group of ranks of size one here.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Protocol

from tenfold.core.clock import Clock
from tenfold.core.errors import ContextTooLong, TenfoldError, Unavailable
from tenfold.core.messages import (
    Embed,
    Embedded,
    Event,
    ModelStats,
    RequestFailed,
    StepDone,
)
from tenfold.core.types import Constraint, EngineRequest, ModelFacts
from tenfold.engine.batcher import Batcher
from tenfold.engine.executor import Executor
from tenfold.engine.prefix_news import PrefixNews
from tenfold.engine.steplog import StepLog
from tenfold.engine.weights import ModelWeights

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("tenfold.engine")


class Instance(Protocol):
    """What the engine's loop needs of a loaded model."""

    facts: ModelFacts
    weights: ModelWeights

    @property
    def has_work(self) -> bool: ...

    @property
    def running(self) -> int:
        """Requests that hold memory or are being computed."""
        ...

    @property
    def waiting(self) -> int: ...

    def oldest(self) -> float:
        """Arrival of the oldest waiting request; infinity where none waits."""
        ...

    def wanted_bytes(self) -> int:
        """Of keys and values, that a waiting request lacks: asleep, all that the first would take;
        awake, what its admission was last refused for."""
        ...

    def overdue(self) -> float:
        """When the first of the waiting requests that has a target will have waited too long;
        infinity for none."""
        ...

    def sleep(self, *, keep: bool = False) -> None:
        """Stop what runs, to be computed again, and give back all pages but the scratch. With
        ``keep`` only those of the weights: what runs goes on when they are back."""
        ...

    def allow_kv(self, pages: int | None) -> None:
        """The limit of keys and values was set anew; None lifts it. Where it fell, nothing that is
        under way is given up: it waits until the limit rises again."""
        ...

    def prepare(self) -> None:
        """On the engine's thread, once, before the first step."""
        ...

    def step(self, peers: int) -> list[Event] | None:
        """Compute one step; None when nothing can run now for want of pages."""
        ...

    def urgency(self) -> float:
        """When a waiting request that could run now must be answered, or its first token is due;
        infinity if none must."""
        ...

    def expire(self, now: float) -> list[Event]: ...
    def abort(self, request_id: str) -> bool: ...
    def relieve(self) -> list[Event]:
        """Nothing on the device can run and nobody can give way: end the request that never
        will."""
        ...

    def cached_pages(self) -> int:
        """How many ``give_pages`` could free."""
        ...

    def give_pages(self, pages: int) -> int:
        """Free so many cached pages for another model, as far as there are; how many it were."""
        ...

    def stats(self) -> ModelStats: ...
    def fail_all(self, error: TenfoldError) -> list[Event]:
        """End every request with this error."""
        ...

    def check(self) -> list[str]: ...
    def close(self) -> list[Event]:
        """Fail what is left and free everything."""
        ...


class GrammarSeam(Protocol):
    """How a constrained request gets its grammar: compiled aside, kept until it is sampled."""

    def compile(self, constraint: Constraint) -> object:
        """On any thread. Raises InvalidRequest."""
        ...

    def keep(self, request: EngineRequest, matcher: object) -> None:
        """On the engine's thread, once the request is queued."""
        ...


class GenerateInstance:
    """A decoder that serves requests token by token."""

    def __init__(
        self,
        facts: ModelFacts,
        batcher: Batcher,
        executor: Executor,
        clock: Clock,
        free: Callable[[], None],
        page_counts: Callable[[], tuple[int, int]],
        weights: ModelWeights,
        grammars: GrammarSeam | None = None,
    ) -> None:
        self.facts = facts
        self.weights = weights
        self.grammars = grammars
        self.batcher = batcher
        self.executor = executor
        self.clock = clock
        self.totals = ModelStats(facts.name, "ready")
        self.news = PrefixNews(facts.name, batcher.cache.tree)
        self.step_log: StepLog | None = None
        self._free = free
        self._page_counts = page_counts

    @property
    def has_work(self) -> bool:
        return self.batcher.has_work

    @property
    def running(self) -> int:
        return len(self.batcher.running)

    @property
    def waiting(self) -> int:
        return len(self.batcher.sequences) - len(self.batcher.running)

    def oldest(self) -> float:
        arrivals = [s.request.arrival for s in self.batcher.sequences.values() if s.kv is None]
        return min(arrivals, default=inf)

    def wanted_bytes(self) -> int:
        batcher = self.batcher
        if batcher.running or not batcher.sequences:
            return batcher.cache.bytes_for(batcher.lacking) if batcher.lacking else 0
        first = next(iter(batcher.sequences.values()))
        return batcher.cache.bytes_for(first.tokens.length + 1)

    def overdue(self) -> float:
        return self.batcher.goals.overdue_at(self.batcher.settings.deadlines.max_wait)

    def sleep(self, *, keep: bool = False) -> None:
        if not keep:
            self.batcher.rest()
            self.batcher.cache.evict_all()
        self.weights.unmap()

    def allow_kv(self, pages: int | None) -> None:
        cache = self.batcher.cache
        if pages is None:
            cache.allowed = None
        elif cache.allowed is not None:
            cache.allowed = max(cache.allowed, pages)

    def prepare(self) -> None:
        self.executor.prepare()

    def step(self, peers: int) -> list[Event] | None:
        deciding = self.clock.now()
        plan = self.batcher.plan(peers)
        if plan is None:
            return None
        predicted = self.batcher.steps.predict(plan.shape)
        began = self.clock.now()
        failures: list[RequestFailed]
        try:
            choices = self.executor.execute(plan)
        except Exception as error:
            log.exception("a step of %s failed", self.facts.name)
            failures = self.batcher.fail_plan(plan, error)
            return self._close_out([], failures)
        ended = self.clock.now()
        seconds = ended - began
        self.batcher.steps.observe(plan.shape, seconds)
        self.batcher.pace.observe(plan.shape, predicted, seconds)
        outputs, failures = self.batcher.commit(plan, choices)
        totals, time = self.totals, self.executor.time
        around = self.clock.now() - ended + began - deciding
        if self.step_log is not None:
            self.step_log.step(self.facts.name, deciding, seconds, around, plan)
        totals.schedule_seconds += around
        totals.kernel_seconds += time.kernels
        totals.sampling_seconds += time.sampling
        totals.launch_seconds += max(0.0, seconds - time.kernels - time.sampling)
        totals.steps += 1
        totals.step_seconds += seconds
        totals.predicted_seconds += predicted
        totals.prompt_tokens += plan.shape.prefill_tokens
        ending = False
        for output in outputs:
            totals.generated_tokens += len(output.token_ids)
            ending = ending or output.finish is not None
        for started in self.batcher.started:
            totals.cached_tokens += started.cached_tokens
        done = StepDone(self.facts.name, self.clock.now(), self.batcher.started, outputs)
        self.batcher.started = []
        # Before the outputs: who asks again as soon as an answer ends finds its prefix known.
        news = self.news.changes(done.at, at_once=ending)
        return self._close_out([done] if news is None else [news, done], failures)

    def _close_out(self, events: list[Event], failures: list[RequestFailed]) -> list[Event]:
        goals = self.batcher.goals
        for event in events:
            if not isinstance(event, StepDone):
                continue
            goals.heard(event)
            for output in event.outputs:
                if output.finish:
                    self.executor.forget(output.request_id)
        for failure in failures:
            self.executor.forget(failure.request_id)
            goals.failed(failure)
        return [*events, *failures]

    def urgency(self) -> float:
        due = self.batcher.goals.next_due(self.clock.now())
        return min(due, self.batcher.urgency())

    def expire(self, now: float) -> list[Event]:
        failures = self.batcher.expire(now)
        return self._close_out([], failures) if failures else []

    def abort(self, request_id: str) -> bool:
        self.executor.forget(request_id)
        self.batcher.goals.gone(request_id, self.clock.now())
        return self.batcher.drop(request_id) is not None

    def relieve(self) -> list[Event]:
        outputs, failures = self.batcher.fail_blocked()
        done = [StepDone(self.facts.name, self.clock.now(), [], outputs)] if outputs else []
        return self._close_out([*done], failures)

    def cached_pages(self) -> int:
        return self.batcher.cache.idle_pages()

    def give_pages(self, pages: int) -> int:
        return self.batcher.cache.evict_pages(pages)

    def stats(self) -> ModelStats:
        batcher, totals = self.batcher, self.totals
        cache = batcher.cache.stats()
        totals.running = len(batcher.running)
        waiting = [s for s in batcher.sequences.values() if s.kv is None]
        totals.waiting = len(waiting)
        totals.waiting_tokens = sum(s.tokens.length for s in waiting)
        totals.preemptions = batcher.preemptions
        if batcher.drafts is not None:
            totals.drafted_tokens = batcher.drafts.drafted
            totals.accepted_tokens = batcher.drafts.accepted
        totals.kv_blocks_used, totals.kv_blocks_cached = cache.used, cache.cached
        totals.kv_blocks_total = cache.total
        totals.weight_pages, totals.kv_pages = self._page_counts()
        totals.image_pages = self.weights.pages
        batcher.goals.fill(totals)
        return replace(totals)

    def check(self) -> list[str]:
        return self.batcher.cache.check_integrity()

    def fail_all(self, error: TenfoldError) -> list[Event]:
        failures = [
            RequestFailed(id, error.code, error.message, error.param)
            for id in list(self.batcher.sequences)
        ]
        for failure in failures:
            self.batcher.goals.failed(failure)
            self.abort(failure.request_id)
        return [*failures]

    def close(self) -> list[Event]:
        failures = self.fail_all(_unloaded(self.facts.name))
        self.batcher.cache.evict_all()
        self._free()
        return failures


@dataclass(slots=True)
class _Embedding:
    """A request in work: the vectors of its first texts are there."""

    command: Embed
    arrival: float
    vectors: list[list[float]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(len(prompt) for prompt in self.command.prompts)


class EmbedInstance:
    """An encoder. A step embeds as many texts as fit the time of a step, at least one."""

    def __init__(
        self,
        facts: ModelFacts,
        embed: Callable[[list[list[int]]], Tensor],
        clock: Clock,
        free: Callable[[], None],
        page_counts: Callable[[], tuple[int, int]],
        weights: ModelWeights,
        step_seconds: float = 0.2,
    ) -> None:
        self.facts = facts
        self.weights = weights
        self.embed = embed
        self.clock = clock
        self.queue: deque[_Embedding] = deque()
        self.totals = ModelStats(facts.name, "ready")
        self._free = free
        self._page_counts = page_counts
        self._step_seconds = step_seconds
        self._pace = 1e-3
        """Seconds a token, as the last steps showed it."""

    def submit(self, command: Embed) -> None:
        """Raises ContextTooLong for a text longer than the encoder's context."""
        longest = max(len(prompt) for prompt in command.prompts)
        if longest > self.facts.context_length:
            raise ContextTooLong(
                f"a text has {longest} tokens and {self.facts.name} takes "
                f"{self.facts.context_length}; shorten it",
                param="input",
            )
        self.queue.append(_Embedding(command, self.clock.now()))

    @property
    def has_work(self) -> bool:
        return bool(self.queue)

    @property
    def running(self) -> int:
        return int(bool(self.queue and self.queue[0].vectors))

    @property
    def waiting(self) -> int:
        return len(self.queue) - self.running

    def oldest(self) -> float:
        return self.queue[0].arrival if self.waiting else inf

    def wanted_bytes(self) -> int:
        return 0

    def overdue(self) -> float:
        return inf

    def sleep(self, *, keep: bool = False) -> None:
        self.weights.unmap()

    def allow_kv(self, pages: int | None) -> None:
        """There are none."""

    def prepare(self) -> None:
        """Nothing to prepare."""

    def step(self, peers: int) -> list[Event] | None:
        work = self.queue[0]
        texts = self._texts(work, self._step_seconds / peers)
        began = self.clock.now()
        try:
            work.vectors += self.embed(texts).tolist()
        except Exception as error:
            log.exception("an embedding step of %s failed", self.facts.name)
            self.queue.popleft()
            return [
                RequestFailed(
                    work.command.id, TenfoldError.code, f"{type(error).__name__}: {error}"
                )
            ]
        self._count(sum(len(text) for text in texts), self.clock.now() - began)
        if len(work.vectors) < len(work.command.prompts):
            return []
        self.queue.popleft()
        return [Embedded(work.command.id, work.vectors, work.tokens)]

    def _texts(self, work: _Embedding, seconds: float) -> list[list[int]]:
        left = work.command.prompts[len(work.vectors) :]
        count, tokens = 0, 0
        for text in left:
            tokens += len(text)
            if count and tokens * self._pace > seconds:
                break
            count += 1
        return left[:count]

    def _count(self, tokens: int, seconds: float) -> None:
        self._pace += 0.3 * (seconds / tokens - self._pace)
        self.totals.steps += 1
        self.totals.prompt_tokens += tokens
        self.totals.step_seconds += seconds

    def urgency(self) -> float:
        return inf

    def expire(self, now: float) -> list[Event]:
        return []

    def abort(self, request_id: str) -> bool:
        before = len(self.queue)
        self.queue = deque(w for w in self.queue if w.command.id != request_id)
        return len(self.queue) < before

    def relieve(self) -> list[Event]:
        return []

    def cached_pages(self) -> int:
        return 0

    def give_pages(self, pages: int) -> int:
        return 0

    def stats(self) -> ModelStats:
        self.totals.waiting = len(self.queue)
        self.totals.weight_pages, self.totals.kv_pages = self._page_counts()
        self.totals.image_pages = self.weights.pages
        return replace(self.totals)

    def check(self) -> list[str]:
        return []

    def fail_all(self, error: TenfoldError) -> list[Event]:
        ids = [work.command.id for work in self.queue]
        self.queue.clear()
        return [RequestFailed(id, error.code, error.message, error.param) for id in ids]

    def close(self) -> list[Event]:
        failures = self.fail_all(_unloaded(self.facts.name))
        self._free()
        return failures


def _unloaded(name: str) -> Unavailable:
    return Unavailable(f"{name} was unloaded while the request was in it")
