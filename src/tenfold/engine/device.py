"""A real device: its pool of pages, its kernels, and how a model is loaded onto them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import torch
from torch import Tensor

from tenfold.core.clock import Clock
from tenfold.core.errors import ConfigError, OutOfMemory
from tenfold.core.messages import DeviceStats, LoadModel
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import EngineRequest, KVDtype, KVGroup, ModelFacts
from tenfold.costs.price import Prices
from tenfold.costs.step import StepModel
from tenfold.engine.batcher import Batcher, Neighbours
from tenfold.engine.goals import Goals
from tenfold.engine.grammars import Grammars
from tenfold.engine.instance import EmbedInstance, GenerateInstance, Instance
from tenfold.engine.residency import Budget
from tenfold.engine.runner import TorchRunner
from tenfold.engine.sampler_state import SamplerState, TokenMatcher
from tenfold.engine.sampling import Sampler
from tenfold.engine.scratch import ModelScratch, PoolScratch
from tenfold.engine.speculator import speculator
from tenfold.engine.step_memory import Boundless, StepMemory, most_pages
from tenfold.engine.steplog import StepLog
from tenfold.engine.weights import Filler, ModelWeights, PackedWeights, ThreadFiller
from tenfold.kernels.base import Kernels, ScratchKernels
from tenfold.kernels.kv_rows import kv_row
from tenfold.kernels.table import build_kernels
from tenfold.kernels.torch_ref import TorchKernels
from tenfold.kvcache.cache import KVCache
from tenfold.kvcache.waiting import MatchIndex
from tenfold.memory.backends import open_backend
from tenfold.memory.base import PageBackend
from tenfold.memory.pool import PagePool, VirtualRange
from tenfold.memory.watermarks import Watermarks
from tenfold.models.decoder import Decoder
from tenfold.models.encoder import Encoder
from tenfold.models.loading import LoadedModel, load_model
from tenfold.scheduling.accounts import Accounts
from tenfold.scheduling.base import PolicySetup
from tenfold.scheduling.registry import policies
from tenfold.scheduling.reservations import Reservations


class Device:
    """One named share of a machine. Models loaded here draw weights and KV from one pool."""

    def __init__(self, settings: DeviceSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.threads = settings.threads or len(os.sched_getaffinity(0))
        self.kernels = self._open_kernels()
        # Other kernels than torch's bring threads of their own, which torch's would fight.
        torch.set_num_threads(self.threads if isinstance(self.kernels, TorchKernels) else 1)
        budget = settings.memory_bytes or self._free_memory()
        pages = budget // settings.page_bytes
        if pages < 1:
            raise ConfigError(
                f"{settings.name} has {budget} bytes of memory, less than one page of "
                f"{settings.page_bytes}; raise device.memory"
            )
        self.pool = PagePool(self._open_backend(), pages)
        self.watermarks = self._watermarks(pages)
        self.accounts = Accounts(settings.schedule)
        self._prices = Prices()
        self._step_log = StepLog(settings.step_log) if settings.step_log else None
        self.reservations = (
            Reservations(self._kv_bytes) if settings.schedule.admission == "reserve" else None
        )
        self._ranges: dict[str, dict[str, VirtualRange]] = {}
        self._caches: dict[str, KVCache] = {}
        self.scratch = PoolScratch(self.pool)
        self._lend_scratch()

    def _watermarks(self, pages: int) -> Watermarks:
        wanted, page = self.settings.residency, self.settings.page_bytes
        high = min(wanted.high_bytes // page, pages)
        return Watermarks(self.pool, min(wanted.low_bytes // page, high // 2), high)

    def _lend_scratch(self) -> None:
        if isinstance(self.kernels, ScratchKernels):
            self.kernels.use_scratch(self.scratch)

    def _kv_dtype(self) -> KVDtype:
        """Of models that choose none: exact kernels go with values that are not rounded."""
        chosen = self.settings.kv_dtype
        if chosen != "auto":
            return chosen
        return "f16" if self.settings.kernels_mode == "fast" else "f32"

    def _open_kernels(self) -> Kernels:
        settings = self.settings
        return build_kernels(
            native=None if settings.native else False,
            mode=settings.kernels_mode,
            arch=settings.kernels_arch,
            threads=self.threads,
        )

    def _free_memory(self) -> int:
        """The pool's size where none is given, in bytes."""
        return int(0.6 * available_memory())

    def _open_backend(self) -> PageBackend:
        return open_backend(self.settings.backend, self.settings.page_bytes)

    def capacity_bytes(self) -> int:
        return self.pool.stats().capacity * self.settings.page_bytes

    def notes(self) -> list[str]:
        return [self.kernels.describe()]

    def load(
        self,
        command: LoadModel,
        clock: Clock,
        neighbours: Neighbours,
        make_room: Callable[[int], bool],
    ) -> Instance:
        """Map, fill and wire one model. On any failure all its pages are back."""
        try:
            return self._load(command, clock, neighbours, make_room)
        except BaseException:
            self._free(command.name)
            raise

    def _free(self, name: str) -> None:
        """All pages and the limit of a model that is unloaded or failed to load."""
        self._ranges.pop(name, None)
        self._caches.pop(name, None)
        self.accounts.close(name)
        self.pool.drop_owner(name)
        if self.scratch.leave(name):
            self._lend_scratch()  # what the kernels knew of its addresses is void

    def _create(self, name: str, what: str, nbytes: int) -> VirtualRange:
        keeps = what == "weights" and self.settings.residency.mode == "elastic"
        grows = what.startswith("kv-")
        space = self.pool.create(name, what, nbytes, grows=grows, keeps=keeps)
        self._ranges.setdefault(name, {})[what] = space
        return space

    def _load(
        self,
        command: LoadModel,
        clock: Clock,
        neighbours: Neighbours,
        make_room: Callable[[int], bool],
    ) -> Instance:
        name = command.name

        def allocate(nbytes: int) -> Tensor:
            weights = self._create(name, "weights", nbytes)
            while not weights.map_all():
                missing = weights.pages - weights.available()
                if not make_room(max(1, missing)):
                    raise OutOfMemory(self._no_room(name, weights))
            return weights.view((nbytes,), torch.uint8)

        cache_dir = Path(self.settings.cache_dir) if self.settings.cache_dir else None
        loaded = load_model(
            Path(command.path),
            self.kernels,
            allocate,
            name=name,
            cache_dir=cache_dir,
            kv_dtype=command.options.kv_dtype or self._kv_dtype(),
        )
        facts = loaded.facts
        if command.options.context_length:
            facts.context_length = min(facts.context_length, command.options.context_length)

        def free() -> None:
            self._free(name)

        weights = self._weights(name, loaded)
        if isinstance(loaded.model, Encoder):
            return EmbedInstance(
                facts,
                loaded.model.embed,
                clock,
                free,
                lambda: self._page_counts(name),
                weights,
                self.settings.itl_target,
            )
        memory = self._step_memory(command, loaded.model, make_room)
        return self._generator(
            command, loaded.model, facts, clock, neighbours, free, memory, weights
        )

    def _weights(self, name: str, loaded: LoadedModel) -> ModelWeights:
        return PackedWeights(self._ranges[name]["weights"], loaded.refill, loaded.image)

    # --- residency ------------------------------------------------------------------------------
    def budget(self) -> Budget:
        """For weights, keys and values: what scratch may have is nobody's to move."""
        stats, scratch = self.pool.stats(), self.scratch
        free = stats.capacity - stats.mapped - (scratch.most - scratch.pages)
        return Budget(stats.capacity - scratch.most, max(0, free))

    def pages_of(self, name: str) -> int:
        return sum(space.mapped_pages for space in self._ranges[name].values())

    def set_limit(self, name: str, pages: int | None) -> None:
        self.pool.set_limit(name, pages)

    def filler(self, call: Callable[[Callable[[], None]], Future[None]], clock: Clock) -> Filler:
        return ThreadFiller(call)

    def _step_memory(
        self, command: LoadModel, model: Decoder, make_room: Callable[[int], bool]
    ) -> StepMemory:
        """Scratch for this model's steps: pages for the smallest now, more when larger ones come.

        Raises OutOfMemory when there are none for the smallest."""
        settings, scratch, name = self.settings, self.scratch, command.name
        if not isinstance(self.kernels, ScratchKernels):
            return Boundless()
        page = settings.page_bytes
        least = model.scratch_bytes(settings.block_tokens, 1)
        left = self.pool.stats().capacity - self._ranges[name]["weights"].mapped_pages
        limit = most_pages(model.scratch_bytes, settings, command.options.speculation, left)
        scratch.admit(name, limit)
        while not scratch.reserve(least):
            if not make_room(1):
                raise OutOfMemory(
                    f"{name} needs {least >> 10} KiB for the results of its smallest step, and "
                    f"{self.name} has no pages left; unload a model or raise device.memory"
                )
        return ModelScratch(scratch, model.scratch_bytes, limit * page)

    def _generator(
        self,
        command: LoadModel,
        model: Decoder,
        facts: ModelFacts,
        clock: Clock,
        neighbours: Neighbours,
        free: Callable[[], None],
        memory: StepMemory,
        weights: ModelWeights,
    ) -> Instance:
        settings = self.settings
        limit = command.options.kv_limit_bytes
        if limit:
            most = weights.pages + limit // settings.page_bytes
            self.pool.set_limit(command.name, most)
        groups = model.kv_groups
        ranges, tensors, capacity = [], [], []
        for group in groups:
            space, tensor = self._kv_range(command.name, group, limit)
            ranges.append(space)
            tensors.append(tensor)
            capacity.append(tensor.shape[0])
        cache = KVCache(
            groups,
            ranges,
            block_tokens=settings.block_tokens,
            page_bytes=settings.page_bytes,
            capacity_blocks=capacity,
            prefix_cache=settings.prefix_cache,
            page_limit=self._most_kv_pages(command.name),
            allowed=limit // settings.page_bytes if limit else None,
        )
        self._caches[command.name] = cache
        matches = MatchIndex(cache.tree)
        setup = PolicySetup(
            matches,
            settings.schedule,
            self.accounts.of_model(command.name),
            self._prices.of(facts.parameters),
        )
        policy = policies.get(command.options.policy or settings.schedule.policy)(setup)
        drafts = speculator(
            command.options.speculation or settings.speculation,
            settings.draft_tokens,
            settings.draft_match,
        )
        batcher = Batcher(
            facts,
            cache,
            matches,
            policy,
            StepModel(),
            settings,
            clock,
            neighbours,
            drafts,
            memory,
            books=self.accounts.open(command.name, setup.price),
            reservations=self.reservations,
            goals=Goals.of(settings.deadlines, command.options),
        )

        def sampler_state(request: EngineRequest, matcher: TokenMatcher | None) -> SamplerState:
            own = len(request.prompt) - request.continued
            return SamplerState(
                request.sampling,
                request.prompt[:own],
                facts.vocab_size,
                facts.eos_ids,
                matcher,
                request.prompt[own:],
            )

        runner = self._runner(model, facts, cache, tensors, sampler_state)
        grammars = Grammars(command.path, facts.eos_ids, settings.grammar_seconds, runner.keep)
        instance = GenerateInstance(
            facts,
            batcher,
            runner,
            clock,
            free,
            lambda: self._page_counts(command.name),
            weights,
            grammars,
        )
        instance.step_log = self._step_log
        return instance

    def _runner(
        self,
        model: Decoder,
        facts: ModelFacts,
        cache: KVCache,
        kv: list[Tensor],
        new_state: Callable[[EngineRequest, TokenMatcher | None], SamplerState],
    ) -> TorchRunner:
        return TorchRunner(model, cache, kv, Sampler(facts.name), new_state)

    def _most_kv_pages(self, name: str) -> int:
        """Pages the model's KV could have if every other model gave up all of its own."""
        weights = self._ranges[name]["weights"].mapped_pages
        return self.pool.stats().capacity - weights - self.scratch.limit(name)

    def _kv_bytes(self) -> int:
        """What all models' keys and values can have between them."""
        weights = sum(found["weights"].mapped_pages for found in self._ranges.values())
        pages = self.pool.stats().capacity - weights - self.scratch.most
        return max(0, pages) * self.settings.page_bytes

    def _kv_range(
        self, name: str, group: KVGroup, limit: int | None
    ) -> tuple[VirtualRange, Tensor]:
        """Address space for as many blocks as the budget could ever back, none of it mapped yet."""
        tokens = self.settings.block_tokens
        block_bytes = group.block_bytes(tokens)
        budget = min(limit or self.capacity_bytes(), self.capacity_bytes())
        if budget < block_bytes:
            raise OutOfMemory(
                f"one block of {tokens} tokens of {name} takes {block_bytes} bytes and the device "
                f"has {budget}; raise device.memory or lower device.block_tokens"
            )
        blocks = self.capacity_bytes() // block_bytes  # a limit may rise while it runs
        space = self._create(name, f"kv-{group.name}", blocks * block_bytes)
        shape = (blocks, len(group.layers), 2, group.kv_heads, tokens)
        row, dtype = kv_row(group.dtype, group.head_dim)
        return space, space.view((*shape, row), dtype)

    def _no_room(self, name: str, weights: VirtualRange) -> str:
        page = self.settings.page_bytes
        stats = self.pool.stats()
        return (
            f"{name} needs {weights.pages * page >> 20} MiB for its weights and {self.name} has "
            f"{(stats.capacity - stats.mapped) * page >> 20} of {stats.capacity * page >> 20} MiB "
            "left; unload a model or raise device.memory"
        )

    def _page_counts(self, name: str) -> tuple[int, int]:
        """Mapped pages of a model: weights, and keys and values."""
        counts = {what: space.mapped_pages for what, space in self._ranges[name].items()}
        weights = counts.pop("weights", 0)
        return weights, sum(counts.values())

    def stats(self, id: str) -> DeviceStats:
        stats, times = self.pool.stats(), self.pool.times()
        return DeviceStats(
            id,
            self.name,
            self.settings.page_bytes,
            stats.capacity,
            stats.mapped,
            stats.reserved,
            self.pool.total_resident_bytes(),
            scratch_pages=self.scratch.pages,
            live_kv_bytes=sum(cache.live_bytes() for cache in self._caches.values()),
            map_seconds=times.map,
            unmap_seconds=times.unmap,
            virtual_bytes=self.settings.page_bytes
            * sum(space.pages for found in self._ranges.values() for space in found.values()),
        )

    def limited(self, name: str) -> bool:
        """Whether a model's own limit leaves it less than the device's budget does."""
        stats = self.pool.stats()
        owner = stats.owners.get(name)
        if owner is None or owner.limit is None:
            return False
        return owner.limit - owner.mapped < stats.capacity - stats.mapped

    def prepare_pages(self) -> bool:
        """Pages for keys and values are prepared by a thread, which is told that there is time."""
        self.watermarks.top_up()
        return False

    def check(self) -> list[str]:
        return self.pool.check()

    def close(self) -> None:
        if self._step_log is not None:
            self._step_log.close()
        self.watermarks.close()
        self.pool.close()
        self.kernels.close()


def available_memory() -> int:
    """Bytes the system could still hand out (MemAvailable)."""
    with open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
