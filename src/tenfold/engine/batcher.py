"""Continuous batching for one model: who joins the next step, who goes on, who gives way.

Each step holds the next token of every decoding sequence and, in the time that is left, chunks of
prompts. Pages are taken when a sequence is admitted (its whole prompt) and as it grows; when none
are left, cached prefixes go first, then the youngest sequence is preempted, to be computed again.
Integers only: the same object runs over a device and in simulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from heapq import heappop, heappush
from math import inf
from operator import attrgetter
from typing import Protocol

from tenfold.core.clock import Clock
from tenfold.core.errors import ContextTooLong, DeadlineExceeded, OutOfMemory, TenfoldError
from tenfold.core.messages import (
    ModelSchedule,
    RequestFailed,
    RequestStarted,
    TokenOutput,
)
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import EngineRequest, FinishReason, ModelFacts
from tenfold.costs.step import StepModel, StepShape
from tenfold.engine.goals import Goals
from tenfold.engine.prompt_turn import PromptTurn
from tenfold.engine.sequence import Choice, Sequence, Slice, StepPlan, TokenBuffer
from tenfold.engine.speculator import Speculator
from tenfold.engine.step_memory import Boundless, StepMemory
from tenfold.engine.waiting_line import WaitingLine
from tenfold.kvcache.cache import KVCache
from tenfold.kvcache.hashing import Tokens, block_hashes, extend_hashes
from tenfold.kvcache.payers import PrefixPayers
from tenfold.kvcache.waiting import MatchIndex
from tenfold.scheduling.accounts import Accounts, ModelBooks
from tenfold.scheduling.base import Policy, Waiting
from tenfold.scheduling.chunking import chunk_seconds, step_target
from tenfold.scheduling.deadlines.pace import Pace
from tenfold.scheduling.reservations import Reservations

Age = tuple[int, int]
"""A request's place among all of its device: priority, then arrival. The smallest never gives way,
so whatever the models do to each other for pages, one of their sequences always advances."""

UNWATCHED = 4.0
"""A step may take so many times the inter-token target where nobody on the device decodes: no one
waits for a next token, and longer chunks of prompts are computed faster."""

_AGE = attrgetter("age")

MOST_REFUSALS = 8
"""Prompts found too large for what is free, after which a step looks at no more of the queue."""


class Neighbours(Protocol):
    """The other models of the device, as one model's batcher sees them."""

    def ticket(self) -> int:
        """The next arrival number of the device."""
        ...

    def running(self) -> bool:
        """Whether another model has a sequence running."""
        ...

    def reclaim(self) -> bool:
        """Free a cached page of another model. False: none has one, or this model's own limit, not
        the device's budget, is what is short."""
        ...

    def give_way(self, age: Age) -> bool:
        """Preempt the youngest sequence of another model, if it is younger than ``age``."""
        ...


class Batcher:
    """The scheduler's view of one model instance. Not thread-safe: the engine's thread owns it."""

    def __init__(
        self,
        facts: ModelFacts,
        cache: KVCache,
        matches: MatchIndex,
        policy: Policy,
        steps: StepModel,
        settings: DeviceSettings,
        clock: Clock,
        neighbours: Neighbours,
        drafts: Speculator | None = None,
        memory: StepMemory | None = None,
        *,
        books: ModelBooks | None = None,
        reservations: Reservations | None = None,
        goals: Goals | None = None,
    ) -> None:
        """``books``: where service is written down. ``reservations``: admission keeps memory for
        the longest end of what runs; without them, for prompts. ``goals``: requests' targets."""
        self.facts = facts
        self.cache = cache
        self.matches = matches
        self.policy = policy
        self.steps = steps
        self.settings = settings
        self.clock = clock
        self.neighbours = neighbours
        self.drafts = drafts
        self.memory = memory or Boundless()
        self.books = books or Accounts(settings.schedule).open(facts.name, 1.0)
        self.books.most_running = settings.max_running
        self.reservations = reservations
        if reservations is not None:
            token = max(1, cache.bytes_for(1 << 20) >> 20)
            self.books.holds = lambda: reservations.capacity // token
        self.payers = PrefixPayers(cache.tree) if settings.schedule.share_prefixes else None
        self.line = WaitingLine(policy, matches)
        self.goals = goals or Goals()
        self.pace = Pace(steps)
        self.turn: PromptTurn | None = None
        """Whose prompts the next steps may hold; None leaves that to the policy."""
        self.changes = 0
        """Grows whenever a request comes, goes, starts or gives way."""
        self.releases = 0
        """Grows whenever one gives its blocks back."""
        self.running: list[Sequence] = []
        self.sequences: dict[str, Sequence] = {}
        self.started: list[RequestStarted] = []
        self.preemptions = 0
        self.admitting = True
        """Whether waiting requests may begin: not while the model makes room for another."""
        self.lacking = 0
        """Tokens for which memory was lacking when an admission was last tried and refused."""
        self.hash_prompt = _hash_prompt
        self._deadlines: list[tuple[float, str]] = []
        self._refused = False
        self._claimed: int | None = None
        self._steady: StepPlan | None = None
        """The last plan, while every request there is does nothing but decode by it."""

    # --- requests come and go -------------------------------------------------------------------
    def submit(self, request: EngineRequest) -> None:
        """Queue a request. Raises ContextTooLong or OutOfMemory for one that could never run."""
        request.sampling.check()
        prompt = len(request.prompt)
        context = self.facts.context_length
        if prompt >= context:
            raise ContextTooLong(
                f"the prompt has {prompt} tokens and {self.facts.name} holds {context} "
                "with at least one for the answer; shorten the prompt",
                param="messages",
            )
        if not self.cache.can_ever_hold(prompt + 1):
            raise OutOfMemory(
                f"the prompt has {prompt} tokens, more than the key-value memory of "
                f"{self.facts.name} can ever hold; raise the device's memory or shorten the prompt"
            )
        prompt -= request.continued
        wanted = request.sampling.max_tokens
        limit = context if wanted is None else min(context, prompt + wanted)
        self.books.sent(prompt, limit - prompt)
        tokens = TokenBuffer(request.prompt)
        hashes = self.hash_prompt(request, tokens.view(), self.settings.block_tokens)
        waiting = Waiting(
            id=request.id,
            client=request.client,
            prompt_tokens=prompt,
            arrival=request.arrival,
            priority=request.priority,
            deadline=request.deadline,
            order=self.neighbours.ticket(),
            hashes=hashes,
        )
        self._steady = None
        wish = self.goals.step_wish(request, self.settings.itl_target)
        self.sequences[request.id] = Sequence(request, tokens, limit, hashes, waiting, wish)
        self.goals.watch(request)
        if request.deadline is not None:
            heappush(self._deadlines, (request.deadline, request.id))
        self._enqueue(self.sequences[request.id])

    def _enqueue(self, seq: Sequence) -> None:
        self.changes += 1
        self.matches.watch(seq.request.id, seq.tokens.view(), seq.hashes, seq.request.namespace)
        self.policy.add(seq.waiting)
        self.line.joined(seq.waiting)

    def drop(self, request_id: str) -> Sequence | None:
        """Take a request out, whatever its state; its blocks are free on return."""
        seq = self.sequences.pop(request_id, None)
        if seq is None:
            return None
        self._steady = None
        self.changes += 1
        unused = 0
        if seq.kv is not None:
            unused = self._release(seq)
        else:
            self.matches.unwatch(request_id)
            self.policy.remove(seq.waiting)
            self.line.left(seq.waiting)
        if seq.started:
            self.policy.finished(seq.request.client, unused)
        return seq

    def _release(self, seq: Sequence) -> int:
        """Take a running sequence's blocks. Returns the prompt tokens it had been admitted for and
        never computed."""
        assert seq.kv is not None
        self._steady = None
        self.changes += 1
        self.releases += 1
        unused = max(0, seq.prompt_tokens - max(seq.billed, seq.computed))
        self.running.remove(seq)
        self._claimed = None
        self.cache.close(seq.kv)
        seq.kv = None
        seq.computed = 0
        if self.reservations is not None:
            self.reservations.release(seq.request.id)
        return unused

    def expire(self, now: float) -> list[RequestFailed]:
        """Fail the requests whose deadline has passed."""
        failures = []
        while self._deadlines and self._deadlines[0][0] < now:
            seq = self.sequences.get(heappop(self._deadlines)[1])
            if seq is None:
                continue
            error = DeadlineExceeded(
                f"the request's time ran out after {now - seq.request.arrival:.1f} s with "
                f"{seq.generated} tokens generated; raise `timeout` or ask for fewer tokens",
                param="timeout",
            )
            failures.append(self._fail(seq, error))
        self.line.expire(now)
        return failures

    def _fail(self, seq: Sequence, error: Exception) -> RequestFailed:
        self.drop(seq.request.id)
        if isinstance(error, TenfoldError):
            return RequestFailed(seq.request.id, error.code, error.message, error.param)
        return RequestFailed(seq.request.id, TenfoldError.code, f"{type(error).__name__}: {error}")

    @property
    def has_work(self) -> bool:
        return bool(self.sequences)

    @property
    def settled(self) -> bool:
        """Whoever waits waits on: nobody can join what runs now."""
        return self._full or len(self.running) == len(self.sequences)

    @property
    def _full(self) -> bool:
        return len(self.running) >= self.settings.max_running

    def unsettle(self) -> None:
        """Sequences were moved on without a plan: the next step is planned anew."""
        self._steady = None

    def order(self) -> None:
        """Sort what runs by age, as every plan does."""
        self.running.sort(key=_AGE)

    # --- deciding a step ------------------------------------------------------------------------
    def plan(self, peers: int = 1) -> StepPlan | None:
        """The next step, or None when nothing can run now.

        ``peers``: how many models of the device have work; they share the inter-token target."""
        if self._steady is not None and self._moved_on(self._steady):
            return self._steady
        self._steady = None
        self.order()
        slices = list(self._decodes())
        while slices and not self._lent(len(slices), len(slices)):
            self.preempt(slices.pop().seq)
        shape = self._draft(slices, peers)
        if slices and len(slices) == len(self.sequences):  # nobody waits, no prompt is unfinished
            plan = StepPlan(slices, shape)
            if self.drafts is None and all(piece.seq.decoding for piece in slices):
                self._steady = plan
            return plan
        turn = self.turn
        if turn is None:
            target = self.target(peers) * (UNWATCHED if peers == 1 and not slices else 1.0)
        else:
            target = turn.seconds
        if target > 0:
            alone = self.steps.predict(shape) if slices else 0.0
            seconds = chunk_seconds(alone, target=target, share=self.settings.prefill_share)
            for piece in self._prefills(shape, seconds):
                slices.append(piece)
                _add(shape, piece)
        return StepPlan(slices, shape) if slices else None

    def _moved_on(self, plan: StepPlan) -> bool:
        """Take every sequence of a steady plan one token further, in place: most steps are such.
        False: one needs a block that cannot be had just so, and the step is planned anew."""
        block = self.settings.block_tokens
        for piece in plan.slices:
            seq = piece.seq
            piece.start = start = seq.computed
            if start % block == 0 and not (seq.kv and self.cache.reserve(seq.kv, start + 1)):
                return False
        plan.shape.decode_context += plan.shape.decode_rows
        plan.again = True
        return True

    def target(self, peers: int) -> float:
        """Seconds that a step may take, for the sake of the answers that run."""
        wished = [seq.itl_target for seq in self.running]
        return step_target(wished, self.settings.itl_target) / peers

    def _draft(self, slices: list[Slice], peers: int) -> StepShape:
        """Give decoding slices drafts where the model speculates; the shape of the outcome."""
        if self.drafts is None or not slices:
            starts = [piece.start for piece in slices]
            rows = len(starts)
            return StepShape(decode_rows=rows, decode_context=sum(starts) + rows, sequences=rows)
        shape = _shape(slices)
        self.drafts.add(
            slices,
            self.cache,
            self.steps,
            seconds=self.steps.predict(shape),
            limit=self.target(peers),
            room=(self.settings.max_step_tokens - len(slices)) // 2,  # prompts keep the other half
        )
        tokens = sum(piece.count for piece in slices)
        if tokens > len(slices) and not self._lent(tokens, tokens, evicting=False):
            self._undraft(slices)
        return _shape(slices)

    def _undraft(self, slices: list[Slice]) -> None:
        for piece in slices:
            if piece.draft:
                assert piece.seq.kv is not None
                piece.count -= len(piece.draft)
                piece.draft = []
                self.cache.trim(piece.seq.kv, piece.seq.tokens.length)

    def _lent(self, tokens: int, rows: int, *, evicting: bool = True) -> bool:
        """Memory for the results of a step with so many tokens and rows of logits: from free pages
        and, where ``evicting``, from caches, its own first."""
        if not self.memory.fits(tokens, rows):
            return False
        while not self.memory.reserve(tokens, rows):
            if not (evicting and (self.cache.evict_pages(1) or self.neighbours.reclaim())):
                return False
        return True

    def _decodes(self) -> Iterator[Slice]:
        block = self.settings.block_tokens
        for seq in list(self.running):
            if seq.kv is None or not seq.decoding:
                continue
            # Inside a block that was begun there is room.
            if seq.computed % block or self._reserve(seq, seq.tokens.length):
                yield Slice(seq, seq.computed, 1)
            else:
                self.preempt(seq)

    def _reserve(self, seq: Sequence, upto: int, *, preempting: bool = True) -> bool:
        """Blocks for positions below ``upto``: from other models' caches and, where ``preempting``,
        from whoever on the device is younger, the youngest first."""
        assert seq.kv is not None
        while not self.cache.reserve(seq.kv, upto):
            if not (self.neighbours.reclaim() or (preempting and self._make_way(seq))):
                return False
        return True

    def _make_way(self, seq: Sequence) -> bool:
        own = max((s for s in self.running if s.age > seq.age), key=lambda s: s.age, default=None)
        if self.neighbours.give_way(own.age if own else seq.age):
            return True
        if own is None:
            return False
        self.preempt(own)
        return True

    def rest(self) -> None:
        """Preempt everything that runs, the youngest first."""
        while (victim := self.youngest) is not None:
            self.preempt(victim)

    @property
    def youngest(self) -> Sequence | None:
        """The running sequence that would give way first."""
        return max(self.running, key=lambda seq: seq.age, default=None)

    def preempt(self, victim: Sequence) -> None:
        """Put a running sequence back in the queue and free its blocks."""
        unused = self._release(victim)
        self.preemptions += 1
        self.matches.watch(
            victim.request.id, victim.tokens.view(), victim.hashes, victim.request.namespace
        )
        self.policy.preempted(victim.waiting, unused)
        self.line.joined(victim.waiting)

    def _prefills(self, shape: StepShape, seconds: float) -> Iterator[Slice]:
        """Chunks of prompts within ``seconds``: begun ones first, then new. Those that are late
        only if there is nothing else to do."""
        shape = replace(shape)
        self._claimed = None
        self._refused = False
        self.lacking = 0
        turn = self.turn
        yield from self._fill(
            shape, seconds, self._candidates() if turn is None else turn.pick(self)
        )
        if turn is not None and turn.late and not shape.prefill_tokens:
            yield from self._fill(shape, seconds, turn.pick(self, late=True))

    def _fill(
        self, shape: StepShape, seconds: float, candidates: Iterator[Sequence]
    ) -> Iterator[Slice]:
        """Chunks of some candidates, each of which is added to ``shape``."""
        refusals = 0
        room = self.settings.max_step_tokens - shape.decode_rows - shape.draft_tokens
        for seq in candidates:
            if room <= 0 or (
                shape.prefill_tokens and not self.steps.largest_chunk(seconds, shape, 0)
            ):
                return
            if seq.kv is None and not self._admit(seq):
                refusals += 1
                self._refused = True
                if self.policy.blocking or refusals == MOST_REFUSALS:
                    return
                continue
            allowed = min(room, self.steps.largest_chunk(seconds, shape, seq.computed))
            if allowed <= 0:
                if shape.prefill_tokens:
                    continue
                # The smallest useful step: time is short, but prompts must not stand still.
                allowed = min(room, self.settings.block_tokens)
            chunk = self._fit(seq, min(allowed, seq.tokens.length - seq.computed), shape)
            if chunk:
                yield Slice(seq, seq.computed, chunk)
                _add_prefill(shape, chunk, seq.computed)
                room -= chunk

    def _fit(self, seq: Sequence, chunk: int, planned: StepShape) -> int:
        """The largest part of ``chunk`` there are blocks and scratch for. When not even a block's
        worth fits, the younger give way if nothing else is planned (the scratch for that much is
        always there), and else the sequence waits a step."""
        rows = planned.sequences + planned.draft_tokens
        tokens = planned.decode_rows + planned.draft_tokens + planned.prefill_tokens
        while not self._lent(tokens + chunk, rows + 1):
            if chunk == 1:
                return 0
            chunk //= 2
        least = min(chunk, self.settings.block_tokens)
        while not self._reserve(seq, seq.computed + chunk, preempting=False):
            if chunk > least:
                chunk = max(least, chunk // 2)
            elif planned.sequences:
                return 0
            elif self._reserve(seq, seq.computed + chunk):
                return chunk
            else:
                self.preempt(seq)
                return 0
        return chunk

    def _candidates(self) -> Iterator[Sequence]:
        """While the batch is full the policy is not asked: a pass that can admit nobody would cost
        as much as any, and what it decides (a refill of deficits) is decided as well later."""
        for seq in list(self.running):
            if seq.kv is not None and not seq.decoding:
                yield seq
        yield from self.newcomers()

    def newcomers(self) -> Iterator[Sequence]:
        """Who waits, as the policy would have them, while there is a place."""
        if self._full or not self.admitting:
            return
        for waiting in self.policy.candidates(self.clock.now()):
            if self._full:
                return
            yield self.sequences[waiting.id]

    def _admit(self, seq: Sequence) -> bool:
        """Open the sequence if its prompt is expected to fit beside what runs already.

        Blocks are taken chunk by chunk; what is checked here is an estimate, so that prompts do not
        crowd in only to be preempted. A model with nothing running takes its first block, from
        younger sequences of other models if it must: nobody keeps a model out for ever."""
        block = self.settings.block_tokens
        missing = seq.tokens.length - self.matches.matched(seq.request.id)
        claimed = self._claims()
        if self.running or self.neighbours.running():
            while (free := self.cache.free_tokens()) < missing + claimed:
                if not self.neighbours.reclaim():
                    self.lacking = missing + claimed - free
                    if self.running:
                        return False
                    break
        if self.reservations is not None and not self._promised(seq):
            return False
        found = self.matches.place(seq.request.id)
        seq.kv = self.cache.open(seq.tokens.view(), seq.hashes, seq.request.namespace, found)
        first = min(seq.tokens.length, seq.kv.cached_tokens + block)
        if not self.running and not self._reserve(seq, first):
            self.cache.close(seq.kv)
            seq.kv = None
            if self.reservations is not None:
                self.reservations.release(seq.request.id)
            return False
        seq.computed = seq.kv.cached_tokens
        self.running.append(seq)
        self._claimed = claimed + max(block, seq.tokens.length - seq.computed)
        self.changes += 1
        self._book_admission(seq, seq.kv.cached_tokens)
        self.matches.unwatch(seq.request.id)
        return True

    def _claims(self) -> int:
        """Tokens that those who run will still take blocks for, at least a block each. Counted once
        in a plan, however many are admitted."""
        if self._claimed is None:
            block = self.settings.block_tokens
            wanted = [seq.tokens.length - seq.computed for seq in self.running]
            self._claimed = sum([tokens if tokens > block else block for tokens in wanted])
        return self._claimed

    def _promised(self, seq: Sequence) -> bool:
        """Memory for the sequence's longest end, beside what was promised to those who run."""
        assert self.reservations is not None
        bytes_ = self.cache.bytes_for(seq.limit)
        return self.reservations.promise(seq.request.id, bytes_)

    def _book_admission(self, seq: Sequence, cached: int) -> None:
        now, request, waiting = self.clock.now(), seq.request, seq.waiting
        self.line.chose(waiting, now)
        new = max(0, seq.prompt_tokens - max(seq.computed, seq.billed))
        self.policy.admitted(waiting, new)
        if seq.started:
            return
        seq.started = True
        self.started.append(RequestStarted(request.id, now, cached))
        self.books.started(request.client, seq.prompt_tokens, cached)
        if self.payers is not None and cached:
            blocks = cached // self.settings.block_tokens
            if due := self.payers.used(request.client, seq.hashes[:blocks]):
                self.policy.shared(due)

    def schedule(self, most: int) -> ModelSchedule:
        """Why the latest requests were chosen, and who is next."""
        return self.line.report(self.facts.name, self.clock.now(), most)

    @property
    def refused(self) -> bool:
        """Whether the last step had no memory for a prompt."""
        return self._refused

    def urgency(self) -> float:
        """The earliest deadline of a waiting request that could be admitted now; else infinity. A
        model that has one goes before the others for the step in which it admits it."""
        if self._refused or self._full or not self.admitting:
            return inf
        if any(not seq.decoding for seq in self.running):
            return inf
        return self.line.urgency()

    # --- after a step ---------------------------------------------------------------------------
    def commit(
        self, plan: StepPlan, choices: list[Choice]
    ) -> tuple[list[TokenOutput], list[RequestFailed]]:
        """Book what a step computed: advance caches, append tokens, end what has ended."""
        outputs: list[TokenOutput] = []
        failures: list[RequestFailed] = []
        chosen = iter(choices)
        decoded: dict[str, int] = {}
        for piece in plan.slices:
            seq, own = piece.seq, piece.start + piece.count
            if piece.draft:
                own -= len(piece.draft)
            if own != seq.tokens.length:  # it does not reach the end of its prompt
                self._advance(seq, piece.start, own)
                continue
            choice = next(chosen)
            output = self._append(seq, choice)
            new = len(output.token_ids)
            # A draft's right tokens count as computed, as if they had come one by one.
            self._advance(seq, piece.start, own + new - 1 if new else own)
            if piece.draft:
                self._settle(piece, output)
            if new:
                outputs.append(output)
                client = seq.request.client
                decoded[client] = decoded.get(client, 0) + new
            if output.finish:
                self.drop(seq.request.id)
            elif choice.error is not None:
                failures.append(self._fail(seq, choice.error))
        if decoded:
            self.policy.decoded(decoded)
            self.books.decoded(decoded)
        return outputs, failures

    def _advance(self, seq: Sequence, start: int, computed: int) -> None:
        assert seq.kv is not None
        seq.computed = computed
        if seq.billed < seq.prompt_tokens:
            prompt_done = min(computed, seq.prompt_tokens)
            if prompt_done > max(start, seq.billed):
                self._bill(seq, max(start, seq.billed), prompt_done)
            seq.billed = max(seq.billed, prompt_done)
        if not self.cache.advance_inside(seq.kv, computed):
            self.cache.advance(seq.kv, seq.tokens.view(), seq.hashes, computed)

    def _bill(self, seq: Sequence, first: int, upto: int) -> None:
        """Prompt positions [first, upto) were computed for the client, for the first time."""
        client, block = seq.request.client, self.settings.block_tokens
        self.policy.prefilled(client, upto - first)
        self.books.prefilled(client, upto - first)
        if self.payers is not None:
            self.payers.computed(client, seq.hashes[first // block : upto // block])

    def _settle(self, piece: Slice, output: TokenOutput) -> None:
        """Count what became of a draft, and give back the blocks that only it needed."""
        seq = piece.seq
        assert self.drafts is not None and seq.kv is not None
        self.drafts.verified(piece, output.token_ids)
        self.cache.trim(seq.kv, seq.tokens.length)

    def _append(self, seq: Sequence, choice: Choice) -> TokenOutput:
        """Take over the chosen tokens, up to the first that ends the sequence."""
        assert seq.kv is not None
        buffer = seq.tokens
        first = buffer.length == seq.prompt_tokens
        taken: list[int] = []
        finish: FinishReason | None = None
        for token in choice.tokens:
            buffer.append(token)
            taken.append(token)
            if self.drafts is not None:
                self.drafts.saw(seq, token)
            finish = self._finish(seq, token)
            if finish:
                break
        if len(taken) == len(choice.tokens):
            finish = choice.finish or finish
        block = self.settings.block_tokens
        if buffer.length >= (len(seq.hashes) + 1) * block:
            extend_hashes(seq.hashes, buffer.view(), block, seq.request.namespace)
        logprobs = choice.logprobs[: len(taken)] if choice.logprobs else None
        cached = seq.kv.cached_tokens if first else 0
        return TokenOutput(seq.request.id, taken, finish, logprobs, cached)

    def _finish(self, seq: Sequence, token: int) -> FinishReason | None:
        params, length = seq.request.sampling, seq.tokens.length
        if length - seq.prompt_tokens >= params.min_tokens:
            if token in params.stop_token_ids:
                return "stop"
            if token in self.facts.eos_ids and not params.ignore_eos:
                return "stop"
        if length >= seq.limit:
            return "length"
        # Only a token that needs one more block can be one too many.
        if length % self.settings.block_tokens or self.cache.can_ever_hold(length + 1):
            return None
        return "length"

    def fail_blocked(self) -> tuple[list[TokenOutput], list[RequestFailed]]:
        """Nothing runs anywhere and still the first request does not fit: it never will. One that
        has generated something ends there."""
        for waiting in self.policy.candidates(self.clock.now()):
            seq = self.sequences[waiting.id]
            if seq.generated:
                self.drop(waiting.id)
                return [TokenOutput(waiting.id, [], "length")], []
            error = OutOfMemory(
                f"{seq.tokens.length} tokens do not fit in the memory that the device has left "
                f"for {self.facts.name}; unload a model, raise the budget, or shorten the prompt"
            )
            return [], [self._fail(seq, error)]
        return [], []

    def fail_plan(self, plan: StepPlan, error: Exception) -> list[RequestFailed]:
        """The step itself broke: its requests fail, the others go on."""
        return [self._fail(p.seq, error) for p in plan.slices if p.seq.kv is not None]


def _hash_prompt(request: EngineRequest, tokens: Tokens, block_tokens: int) -> list[int]:
    return block_hashes(tokens, block_tokens, request.namespace)


def _shape(slices: list[Slice]) -> StepShape:
    shape = StepShape()
    for piece in slices:
        _add(shape, piece)
    return shape


def _add(shape: StepShape, piece: Slice) -> None:
    if piece.seq.decoding:
        shape.decode_rows += 1
        shape.decode_context += piece.start + 1
        shape.sequences += 1
        if piece.draft:
            shape.draft_tokens += len(piece.draft)
            shape.prefill_context += len(piece.draft) * piece.start
    else:
        _add_prefill(shape, piece.count, piece.start)


def _add_prefill(shape: StepShape, chunk: int, context: int) -> None:
    shape.prefill_tokens += chunk
    shape.prefill_context += chunk * context
    shape.sequences += 1
