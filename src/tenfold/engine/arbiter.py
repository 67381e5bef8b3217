"""Which model's step is next where requests have TTFT targets, and whose prompts it may hold.

Of the requests whose clients have credit, ``scheduling.deadlines`` chooses the model; within it the
policy chooses the request, unless one would be late for it. Models that decode go on within their
target between tokens; the time between goes to prompts. Without targets there is nothing to do
here, and models take turns. Does not know how a step is computed, nor how models wake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf

from tenfold.core.settings import DeviceSettings
from tenfold.costs.step import StepShape
from tenfold.engine.batcher import UNWATCHED, Batcher
from tenfold.engine.instance import GenerateInstance, Instance
from tenfold.engine.prompt_turn import PromptTurn
from tenfold.engine.sequence import Sequence
from tenfold.scheduling.deadlines.base import Job, Schedule
from tenfold.scheduling.deadlines.beat import Beat, Share, slack
from tenfold.scheduling.deadlines.line import Line

FRESH_SECONDS = 5e-3
"""A schedule is made anew after so long, and when requests came or went."""

SECONDS_A_JOB = 2e-4
"""But with many jobs no oftener than this: what scheduling one takes is a few hundredths of it."""

PATIENCE = 0.05
"""A model that had no memory for a prompt is asked again after so long, or when a request ended."""

STEP_PART = 0.4
"""A step takes at most this part of the shortest TTFT target: who arrives waits for its end."""

AT_RISK = 0.3
"""Answers give way to prompts when a first token has less than this part of its time to spare."""

ReadyAt = Callable[[str], float]
"""When a model's weights will be there: any time gone by if they are, infinity if nobody knows."""


@dataclass(slots=True)
class _Left:
    """A prompt that is not done: so many tokens to compute behind so many cached ones."""

    seq: Sequence
    tokens: int
    cached: int


class Arbiter:
    """One device's. ``instances`` are the engine's own; ``ready_at`` tells of models that wake."""

    def __init__(
        self,
        settings: DeviceSettings,
        instances: Mapping[str, Instance],
        ready_at: ReadyAt = lambda model: -inf,
    ) -> None:
        self.settings = settings
        self.ready_at = ready_at
        self.line = Line(settings.deadlines)
        self._instances = instances
        self._known: dict[str, Batcher] = {}
        self._counted = 0
        self._by_turns = settings.deadlines.order == "fifo"
        self._prompts = Share(settings.prefill_share)
        self._answers = Share(settings.deadlines.answer_share)
        self._active = False
        self._planned = -inf
        self._seen: dict[str, int] = {}
        self._releases = 0
        self._late: dict[str, frozenset[str]] = {}
        self._blocked: dict[str, float] = {}
        self._last_step: dict[str, float] = {}
        self._lead: Job | None = None
        self._shortest = inf

    # --- the loop's calls -----------------------------------------------------------------------
    def order(self, names: list[str], now: float) -> list[str] | None:
        """The models that have work, ``names`` in the order of turns, in the order in which to try
        them. None: deadlines have no say, and nobody's prompts are held back."""
        if self._by_turns or not self._wanted(names):
            self.rest()
            return None
        self._active = True
        self._refresh(now)
        leads = self._leads(names, now)
        self._lead = next(iter(leads.values()), None)
        if self._lead is None:
            self._release()
            return None
        return self._arrange(names, leads, self._lead, now)

    def stepped(self, name: str, began: float, ended: float) -> None:
        """``name`` ran a step."""
        self._last_step[name] = ended
        if not self._active:
            return
        seconds, lead = ended - began, self._lead
        batcher = self._batcher(name)
        prompts = batcher.pace.latest if batcher is not None else 0
        if prompts:
            self._prompts.ran(seconds)
            self._answers.waited(seconds)
            if lead is not None:
                self.line.spent(lead.overdue_at <= self._planned, seconds)
        elif lead is not None:
            self._prompts.waited(seconds)
            self._answers.ran(seconds)
            if batcher is not None and lead.model == name:  # it had its turn, and no memory
                self._blocked[name] = ended + PATIENCE

    def rest(self) -> None:
        """Nobody waits for a first token that has a target: nothing is held back."""
        if not self._active:
            return
        self._active = False
        self._planned = -inf
        self._release()
        self._blocked.clear()
        self._sort_out(self.line.plan([], 0.0))

    def forget(self, name: str) -> None:
        """The model is gone."""
        self._known, self._counted = {}, 0
        for known in (self._seen, self._blocked, self._last_step):
            known.pop(name, None)

    # --- jobs -----------------------------------------------------------------------------------
    def _batcher(self, name: str) -> Batcher | None:
        """None for an encoder."""
        return self._generating().get(name)

    def _batchers(self) -> Iterable[tuple[str, Batcher]]:
        return self._generating().items()

    def _generating(self) -> dict[str, Batcher]:
        """The models that answer with tokens. Who goes is forgotten, so a count tells who came."""
        if self._counted != len(self._instances):
            self._counted = len(self._instances)
            self._known = {
                name: instance.batcher
                for name, instance in self._instances.items()
                if isinstance(instance, GenerateInstance)
            }
        return self._known

    def _wanted(self, names: list[str]) -> bool:
        for name in names:
            batcher = self._batcher(name)
            if batcher is not None and batcher.goals.unanswered:
                return True
        return False

    def _refresh(self, now: float) -> None:
        """Make the schedule anew where it may have changed."""
        age = now - self._planned
        seen = {name: batcher.changes for name, batcher in self._batchers()}
        if age < SECONDS_A_JOB * len(self.line.schedule):
            return
        if age < FRESH_SECONDS and seen == self._seen:
            return
        releases = sum(batcher.releases for _, batcher in self._batchers())
        if releases != self._releases:
            self._releases = releases
            self._blocked.clear()
        self._seen, self._planned = seen, now
        self._sort_out(self.line.plan(self._jobs(), now))

    def _sort_out(self, schedule: Schedule) -> None:
        """Which requests of each model run late; of one that has no others none is told apart."""
        late: dict[str, list[Job]] = {}
        for job in schedule.late:
            late.setdefault(job.model, []).append(job)
        others = {job.model for job in schedule.on_time} | {job.model for job in schedule.overdue}
        self._late = {name: frozenset(job.id for job in late.get(name, ())) for name in others}
        for name, batcher in self._batchers():
            batcher.goals.deferred = sum(job.due < inf for job in late.get(name, ()))

    def _jobs(self) -> list[Job]:
        self._shortest, longest = self._targets()
        seconds = self._step_seconds()
        deadlines = self.settings.deadlines
        factor = deadlines.margin / (1.0 - deadlines.answer_share)
        jobs = []
        for name, batcher in self._batchers():
            left = list(self._left(batcher))
            if not left:
                continue
            times = batcher.pace.prompts([(one.tokens, one.cached) for one in left], seconds)
            ready = self.ready_at(name)
            for one, time in zip(left, times, strict=True):
                jobs.append(self._job(batcher, one.seq, factor * time, ready, longest))
        return jobs

    def _left(self, batcher: Batcher) -> Iterator[_Left]:
        """Prompts that are not done: begun ones, and those that may begin, of clients that have
        credit."""
        may_run: dict[str, bool] = {}
        for seq in batcher.sequences.values():
            if seq.kv is not None:
                if not seq.decoding:
                    yield _Left(seq, seq.tokens.length - seq.computed, seq.computed)
                continue
            if not batcher.admitting:
                continue
            client = seq.request.client
            if client not in may_run:
                may_run[client] = batcher.policy.may_run(client)
            if may_run[client]:
                cached = batcher.matches.matched(seq.request.id)
                yield _Left(seq, max(1, seq.tokens.length - cached), cached)

    def _job(
        self, batcher: Batcher, seq: Sequence, seconds: float, ready: float, longest: float
    ) -> Job:
        """A request without a target is late from the beginning, and overdue like one of the
        longest target there is. One that gave way goes on before the others."""
        request, settings = seq.request, self.settings.deadlines
        target = batcher.goals.ttft_of(request) or longest
        overdue = request.arrival + settings.max_wait * target
        due = self._due(batcher, seq)
        if due == inf and request.deadline is not None and request.deadline < overdue:
            due = request.deadline
        return Job(
            request.id,
            batcher.facts.name,
            request.arrival,
            seconds,
            due=inf if seq.generated else due,
            overdue_at=-inf if seq.generated else overdue,
            ready=ready,
            priority=request.priority,
            order=seq.waiting.order,
        )

    def _due(self, batcher: Batcher, seq: Sequence) -> float:
        """By its target, or by its timeout if that comes before."""
        target = batcher.goals.ttft_of(seq.request)
        if target is None or seq.generated:
            return inf
        due = seq.request.arrival + target
        return due if seq.request.deadline is None else min(due, seq.request.deadline)

    def _targets(self) -> tuple[float, float]:
        """The shortest and the longest TTFT target of models that are awake or waking."""
        found = set()
        for name, batcher in self._batchers():
            if self.ready_at(name) == inf:
                continue
            if batcher.goals.ttft:
                found.add(batcher.goals.ttft)
            found |= batcher.goals.open_targets()
        return min(found, default=inf), max(found, default=inf)

    # --- the choice -----------------------------------------------------------------------------
    def _leads(self, names: list[str], now: float) -> dict[str, Job]:
        """The best job of each model that can run it now, best model first. Models that had no
        memory come last: if nobody else can run, one of them must."""
        leads: dict[str, Job] = {}
        blocked: dict[str, Job] = {}
        able = set(names)
        for job in self.line.jobs():
            name = job.model
            if name not in able or name in leads or name in blocked or not self._waits(job):
                continue
            some = blocked if self._blocked.get(name, -inf) > now else leads
            some[name] = job
            if len(leads) + len(blocked) == len(able):
                break
        return {**leads, **blocked} if leads else {}

    def _waits(self, job: Job) -> bool:
        batcher = self._batcher(job.model)
        seq = None if batcher is None else batcher.sequences.get(job.id)
        return seq is not None and not seq.decoding

    def _arrange(self, names: list[str], leads: dict[str, Job], lead: Job, now: float) -> list[str]:
        """A model that is due to decode, without prompts; else the lead. Who comes behind is only
        asked where the one before cannot run."""
        beats = [beat for name in names if (beat := self._beat(name, now)) is not None]
        others = [beat for beat in beats if beat.model != lead.model]
        own = min((beat.due - now for beat in beats if beat.model == lead.model), default=inf)
        spare, least = slack(others, now), self._least_step(beats)
        if self._at_risk(now):
            own = inf
            if not self._answers.covers(sum(beat.seconds for beat in others)):
                spare = inf
        seconds = max(least, min(self._step_seconds(), spare, own, self._leeway(lead, now)))
        order = [*leads, *(name for name in names if name not in leads)]
        for name in names:
            if (batcher := self._batcher(name)) is not None:
                batcher.turn = self._turn(name, seconds, now) if name in leads else None
        if spare < least and not self._prompts.covers(least):
            first = min(others, key=lambda beat: beat.due).model
            if (batcher := self._batcher(first)) is not None:
                batcher.turn = PromptTurn(0.0)
            order.remove(first)
            order.insert(0, first)
        return order

    def _turn(self, name: str, seconds: float, now: float) -> PromptTurn:
        schedule = self.line.schedule
        late = self._late.get(name, frozenset())
        overdue = [job.id for job in schedule.overdue if job.model == name]
        tight = self._tight(schedule, name, now + seconds)
        if self.line.overdue_first:
            return PromptTurn(seconds, overdue + tight, late)
        return PromptTurn(seconds, tight, late.union(overdue))

    def _tight(self, schedule: Schedule, name: str, end: float) -> list[str]:
        """The model's requests that would be late if they began behind a step that ends then; one
        of those that wait for the same piece of a prompt."""
        batcher = self._batcher(name)
        assert batcher is not None
        found, pieces = [], set()
        for job in schedule.on_time:
            if job.model != name or job.due - job.seconds >= end:
                continue
            seq = batcher.sequences.get(job.id)
            if seq is None or seq.decoding:
                continue
            if seq.kv is None:
                block = batcher.matches.matched(job.id) // self.settings.block_tokens
                piece = seq.hashes[block] if block < len(seq.hashes) else job.id
                if piece in pieces:
                    continue
                pieces.add(piece)
            found.append(job.id)
        return found

    def _at_risk(self, now: float) -> bool:
        """Whether a first token that can be on time has little time to spare: answers give way."""
        end = now
        for job in self.line.schedule.on_time:
            end += job.seconds
            if job.due - end < AT_RISK * (job.due - job.arrival):
                return True
        return False

    def _leeway(self, lead: Job, now: float) -> float:
        """How long a step may take for nobody to be late for it: the lead itself, and those of
        other models that come after it."""
        if lead.due == inf:
            return inf
        least, before = lead.due - now, 0.0
        for job in self.line.schedule.on_time:
            if job.model == lead.model:
                continue
            before += job.seconds
            least = min(least, job.due - before - now)
        return max(least, lead.seconds)

    # --- answers that run -----------------------------------------------------------------------
    def _beat(self, name: str, now: float) -> Beat | None:
        """When the model's running answers are due their next token; None where it has none."""
        last = self._last_step.get(name, now)
        batcher = self._batcher(name)
        if batcher is None:  # an encoder: it has its turn as if it decoded
            wish = self.settings.itl_target
            return Beat(name, last + wish, wish / max(1, len(self._instances)), wish)
        rows = context = 0
        ahead = inf
        for seq in batcher.running:
            if seq.decoding:
                rows += 1
                context += seq.computed + 1
                ahead = min(ahead, batcher.goals.token_due(seq.request.id))
        if not rows:
            return None
        shape = StepShape(decode_rows=rows, decode_context=context, sequences=rows)
        wish = batcher.target(1)
        due = last + wish / max(1.0, self.settings.deadlines.margin)
        # A TPOT target is of a whole answer: who is ahead of it waits, but no longer than anybody.
        due = max(due, min(ahead, last + self.settings.itl_target))
        return Beat(name, due, batcher.steps.predict(shape), wish)

    def _least_step(self, beats: list[Beat]) -> float:
        """The shortest step for which prompts are taken up: below it most of the time would go to
        reading weights."""
        wishes = [beat.every for beat in beats]
        return self.settings.prefill_share * min([self.settings.itl_target, *wishes])

    def _step_seconds(self) -> float:
        """The longest step with prompts, where nothing is due."""
        return min(UNWATCHED * self.settings.itl_target, STEP_PART * self._shortest)

    def _release(self) -> None:
        for _, batcher in self._batchers():
            batcher.turn = None
