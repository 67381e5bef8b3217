"""A tiny engine with continuous batching that drives any policy by its contract, and writes a log.

M tokens of memory, prefixes that are cached whole or in part and matched exactly, prompts computed
at once or in chunks, aborts, evictions, preemption. Service is counted here, from what the model of
the engine computed, and never read from a policy. It knows no policy and no tensors.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tenfold.core.settings import ScheduleSettings
from tenfold.scheduling.accounts import Accounts
from tenfold.scheduling.base import Policy, PolicyFactory, PolicySetup, Waiting


class PrefixMatches:
    """What is cached of waiting requests, as the engine says. Counts how often it is asked."""

    block_tokens = 4

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.changed: set[str] = set()
        self.asked = 0

    def put(self, key: str, tokens: int) -> None:
        if self.values.get(key) != tokens:
            self.values[key] = tokens
            self.changed.add(key)

    def drop(self, key: str) -> None:
        self.values.pop(key, None)
        self.changed.discard(key)

    def __contains__(self, key: object) -> bool:
        return key in self.values

    def matched(self, key: str) -> int:
        self.asked += 1
        return self.values[key]

    def take_changed(self) -> set[str]:
        changed, self.changed = self.changed, set()
        return changed


@dataclass(eq=False)
class Job:
    """A request: ``shared`` tokens of ``prefix``, then its own; ``output`` tokens, which only the
    model knows, of at most ``limit``."""

    id: str
    client: str
    prefix: str
    shared: int
    prompt: int
    output: int
    limit: int
    waiting: Waiting
    computed: int = 0
    billed: int = 0
    produced: int = 0
    cached: int = 0
    started: bool = False
    age: int = 0
    submitted: int = 0

    @property
    def whole(self) -> int:
        """Tokens to be computed before the next output token."""
        return self.prompt + self.produced

    @property
    def unused(self) -> int:
        return max(0, self.prompt - max(self.billed, self.computed))


@dataclass
class Step:
    """What one step did. Service is cumulative, by client; ``promised`` counts a prompt when it is
    admitted, ``served`` when it is computed."""

    admitted: list[tuple[str, int]] = field(default_factory=list)
    busy: set[str] = field(default_factory=set)
    served: dict[str, float] = field(default_factory=dict)
    promised: dict[str, float] = field(default_factory=dict)
    credit: dict[str, float] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    batch: int = 0
    queued: int = 0
    tried: int = 0
    queued_before: int = 0


class Engine:
    """One model. ``credit`` and ``rounds`` (of a client) are read for the log, where given."""

    def __init__(
        self,
        policy: Policy,
        matches: PrefixMatches,
        memory: int,
        *,
        admission: str = "reserve",
        chunk: int = 0,
        weights: tuple[float, float] = (1.0, 2.0),
        price: float = 1.0,
        credit: Callable[[str], float] | None = None,
        rounds: Callable[[str], int] | None = None,
        step_seconds: float = 1.0,
    ) -> None:
        self.policy, self.matches, self.memory = policy, matches, memory
        self.reserving, self.chunk = admission == "reserve", chunk
        self.extend_weight, self.output_weight = weights[0] * price, weights[1] * price
        self.credit, self.rounds, self.step_seconds = credit, rounds, step_seconds
        self.queue: dict[str, Job] = {}
        self.running: list[Job] = []
        self.cache: dict[str, int] = {}
        self.log: list[Step] = []
        self.trace: list[tuple[int, str, int]] = []
        self.served: defaultdict[str, float] = defaultdict(float)
        self.promised: defaultdict[str, float] = defaultdict(float)
        self.in_queue: defaultdict[str, int] = defaultdict(int)
        self.clients: dict[str, None] = {}
        self.finished: list[str] = []
        self.most_output: defaultdict[str, int] = defaultdict(int)
        self.preemptions = self.refunded = self.orders = self.ages = self.reserved = 0
        self.now = 0.0
        self.watchers: list[Watcher] = []

    # --- what happens to it -----------------------------------------------------------------------
    def submit(
        self,
        client: str,
        *,
        shared: int = 0,
        own: int = 1,
        output: int = 1,
        limit: int = 0,
        prefix: str = "p",
        priority: int = 0,
        hashes: list[int] | None = None,
    ) -> Job:
        self.orders += 1
        id = f"{client}/{self.orders}"
        prompt = shared + own
        waiting = Waiting(
            id, client, prompt, self.now, priority, order=self.orders, hashes=hashes or []
        )
        name = f"{client}/{prefix}"
        job = Job(id, client, name, shared, prompt, output, max(limit, output), waiting)
        job.submitted = len(self.log)
        assert prompt + job.limit <= self.memory, "never fits"
        self.clients[client] = None
        self._queue(job)
        self.policy.add(waiting)
        return job

    def _queue(self, job: Job) -> None:
        self.matches.put(job.id, min(job.shared, self.cache.get(job.prefix, 0)))
        self.queue[job.id] = job
        self.in_queue[job.client] += 1

    def _unqueue(self, job: Job) -> None:
        del self.queue[job.id]
        self.matches.drop(job.id)
        self.in_queue[job.client] -= 1

    def _leave(self, job: Job) -> None:
        self.running.remove(job)
        self.reserved -= job.prompt + job.limit

    def abort(self, job: Job) -> None:
        """End a request whatever its state; nothing, when it has ended."""
        unused = 0
        if job.id in self.queue:
            self._unqueue(job)
            self.policy.remove(job.waiting)
        elif job in self.running:
            self._leave(job)
            unused = job.unused
            self._refund(job.client, unused)
        else:
            return
        if job.started:
            self.policy.finished(job.client, unused)

    def evict(self, prefix: str) -> None:
        self.cache.pop(prefix, None)
        self._rematch(prefix)

    def _rematch(self, prefix: str) -> None:
        for job in self.queue.values():
            if job.prefix == prefix:
                self.matches.put(job.id, min(job.shared, self.cache.get(prefix, 0)))

    def _refund(self, client: str, tokens: int) -> None:
        self.promised[client] -= self.extend_weight * tokens
        self.refunded += tokens

    # --- a step -----------------------------------------------------------------------------------
    def fits(self, job: Job) -> bool:
        if self.reserving:
            return self.reserved + job.prompt + job.limit <= self.memory
        taken = sum(max(one.whole, one.computed) + 1 for one in self.running)
        return taken + job.whole + 1 <= self.memory

    def step(self) -> Step:
        step = Step(queued_before=len(self.queue))
        step.busy = {client for client, count in self.in_queue.items() if count}
        self._poll(step)
        for watcher in self.watchers:
            watcher.starts(self)
        self._pass(step)
        for watcher in self.watchers:
            watcher.passed(self)
        step.batch = len(self.running)
        for client in self.clients:
            left = sum(job.output - job.produced for job in self.running if job.client == client)
            self.most_output[client] = max(self.most_output[client], left)
        self._forward(step)
        step.busy &= {client for client, count in self.in_queue.items() if count}
        step.queued = len(self.queue)
        step.served, step.promised = dict(self.served), dict(self.promised)
        if self.credit is not None:
            step.credit = {client: self.credit(client) for client in self.clients}
        if self.rounds is not None:
            step.rounds = {client: self.rounds(client) for client in self.clients}
        self.log.append(step)
        self.now += self.step_seconds
        return step

    def _poll(self, step: Step) -> None:
        if self.credit is None:
            return
        for client in self.clients:
            credit = self.credit(client)
            step.low[client] = min(step.low.get(client, credit), credit)
            step.high[client] = max(step.high.get(client, credit), credit)

    def _pass(self, step: Step) -> None:
        offered: set[str] = set()
        for waiting in self.policy.candidates(self.now):
            assert waiting.id not in offered, "offered twice in a pass"
            offered.add(waiting.id)
            job = self.queue[waiting.id]
            step.tried += 1
            fits = self.fits(job)
            for watcher in self.watchers:
                watcher.tries(self, job, fits)
            if fits:
                self._admit(job, step)
            elif self.policy.blocking:
                return

    def _admit(self, job: Job, step: Step) -> None:
        self._unqueue(job)
        job.cached = job.computed = min(job.shared, self.cache.get(job.prefix, 0))
        self.ages += 1
        job.age, job.started = self.ages, True
        self.running.append(job)
        self.reserved += job.prompt + job.limit
        self._poll(step)
        self.promised[job.client] += self.extend_weight * job.unused
        self.policy.admitted(job.waiting, job.unused)
        self._poll(step)
        step.admitted.append((job.id, job.cached))
        self.trace.append((len(self.log), job.id, job.cached))
        if not self.in_queue[job.client]:
            step.busy.discard(job.client)

    def _forward(self, step: Step) -> None:
        room = self.chunk or 1 << 60
        counts: dict[str, int] = {}
        ended: list[Job] = []
        for job in list(self.running):
            if not self.reserving and not self._make_room(job):
                continue
            if job.computed < job.whole:
                taken = min(room, job.whole - job.computed)
                room -= taken
                self._advance(job, job.computed + taken)
            if job.computed == job.whole:
                job.produced += 1
                counts[job.client] = counts.get(job.client, 0) + 1
                if job.produced == job.output:
                    ended.append(job)
        for job in ended:  # as the batcher does: a request has ended before its step is charged
            self._leave(job)
            self.finished.append(job.id)
            self.policy.finished(job.client, 0)
        if counts:
            self.policy.decoded(counts)
        for client, tokens in counts.items():
            self.served[client] += self.output_weight * tokens
            self.promised[client] += self.output_weight * tokens
        self._poll(step)

    def _advance(self, job: Job, computed: int) -> None:
        start, job.computed = job.computed, computed
        done = min(computed, job.prompt)
        if done > max(start, job.billed):
            new = done - max(start, job.billed)
            self.policy.prefilled(job.client, new)
            self.served[job.client] += self.extend_weight * new
        job.billed = max(job.billed, done)
        if min(computed, job.shared) > self.cache.get(job.prefix, 0):
            self.cache[job.prefix] = min(computed, job.shared)
            self._rematch(job.prefix)

    def _make_room(self, job: Job) -> bool:
        """For one more token of ``job``: the youngest give way. False: it was the job itself."""
        if job not in self.running:
            return False
        while sum(one.whole for one in self.running) + 1 > self.memory:
            victim = max(self.running, key=lambda one: one.age)
            self.preempt(victim)
            if victim is job:
                return False
        return True

    def preempt(self, job: Job) -> None:
        self._leave(job)
        self.preemptions += 1
        unused = job.unused
        self._refund(job.client, unused)
        job.computed = 0
        self._queue(job)
        self.policy.preempted(job.waiting, unused)


class Watcher:
    """Sees a pass from inside. Does nothing itself."""

    def starts(self, engine: Engine) -> None:
        """A pass begins."""

    def tries(self, engine: Engine, job: Job, fits: bool) -> None:
        """The request is tried; it is admitted at once if it ``fits``."""

    def passed(self, engine: Engine) -> None:
        """The pass is over."""


# --- clients ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Profile:
    """How a client behaves: keeps ``depth`` requests queued, or asks with ``chance`` in a step, or
    has one request at a time; does so for ``on`` steps, then pauses for ``off``."""

    name: str
    weight: float = 1.0
    depth: int = 0
    chance: float = 0.0
    one_at_a_time: bool = False
    on: int = 1
    off: int = 0
    prefixes: int = 1
    shared: tuple[int, int] = (0, 0)
    own: tuple[int, int] = (1, 8)
    output: tuple[int, int] = (1, 8)
    spare: int = 0
    priorities: int = 1

    def longest(self) -> int:
        return self.shared[1] + self.own[1]

    def largest(self) -> int:
        return self.longest() + self.output[1] + self.spare


class World:
    """An engine and its clients. The same seed gives the same requests to any policy that admits
    the same ones."""

    def __init__(
        self,
        engine: Engine,
        profiles: Iterable[Profile],
        seed: int,
        *,
        aborts: float = 0.0,
        evictions: float = 0.0,
    ) -> None:
        self.engine, self.profiles = engine, list(profiles)
        self.rng = random.Random(seed)
        self.aborts, self.evictions = aborts, evictions
        self.live: list[Job] = []

    def submit(self, profile: Profile) -> Job:
        rng = self.rng
        output = rng.randint(*profile.output)
        job = self.engine.submit(
            profile.name,
            shared=rng.randint(*profile.shared),
            own=rng.randint(*profile.own),
            output=output,
            limit=output + rng.randint(0, profile.spare),
            prefix=str(rng.randrange(profile.prefixes)),
            priority=rng.randrange(profile.priorities),
        )
        self.live.append(job)
        return job

    def arrive(self, profile: Profile) -> None:
        if len(self.engine.log) % (profile.on + profile.off) >= profile.on:
            return
        while self.engine.in_queue[profile.name] < profile.depth:
            self.submit(profile)
        if profile.chance and self.rng.random() < profile.chance:
            self.submit(profile)
        if profile.one_at_a_time and not self.has_work(profile.name):
            self.submit(profile)

    def has_work(self, client: str) -> bool:
        running = any(job.client == client for job in self.engine.running)
        return running or self.engine.in_queue[client] > 0

    def step(self) -> Step:
        for profile in self.profiles:
            self.arrive(profile)
        if self.aborts and self.live and self.rng.random() < self.aborts:
            self.engine.abort(self.live.pop(self.rng.randrange(len(self.live))))
        if self.evictions and self.engine.cache and self.rng.random() < self.evictions:
            self.engine.evict(self.rng.choice(sorted(self.engine.cache)))
        return self.engine.step()

    def run(self, steps: int) -> World:
        for _ in range(steps):
            self.step()
        return self


def drain(engine: Engine, most: int) -> int:
    """Steps until everything has ended. AssertionError after ``most``."""
    for steps in range(most):
        if not engine.queue and not engine.running:
            return steps
        engine.step()
    raise AssertionError(f"{len(engine.queue)} requests still queued after {most} steps")


def tenfold_engine(
    factory: PolicyFactory,
    settings: ScheduleSettings,
    memory: int,
    *,
    accounts: Accounts | None = None,
    chunk: int = 0,
    price: float = 1.0,
    step_seconds: float = 0.01,
) -> Engine:
    """An engine with one of the package's policies; the log follows its deficits. Steps
    are short, so that nobody is forgotten for having been idle for minutes."""
    matches = PrefixMatches()
    books = accounts or Accounts(settings)
    deficits = books.deficits
    return Engine(
        factory(PolicySetup(matches, settings, books, price)),
        matches,
        memory,
        admission=settings.admission,
        chunk=chunk,
        weights=(settings.extend_weight, settings.output_weight),
        price=price,
        credit=deficits.credit,
        rounds=deficits.rounds,
        step_seconds=step_seconds,
    )
