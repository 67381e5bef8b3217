"""A model that is fed given tokens and shows the logits of each: what measurements are made of.

It is loaded as a server would load it: a device of its own, its kernels, its pages. Shape letters
as in ``models.batch``. Knows nothing of texts, nor of what the logits are for.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.core.clock import SystemClock
from tenfold.core.errors import ConfigError
from tenfold.core.messages import LoadModel
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import KVDtype
from tenfold.engine.device import Device
from tenfold.engine.engine import Engine
from tenfold.engine.instance import GenerateInstance
from tenfold.engine.runner import TorchRunner
from tenfold.kernels.base import ScratchKernels
from tenfold.kernels.scratch import HeapMemory
from tenfold.kernels.table import Mode
from tenfold.kvcache.hashing import block_hashes
from tenfold.kvcache.sequence import SequenceKV
from tenfold.models.batch import ForwardBatch


@dataclass(slots=True, frozen=True)
class Feed:
    """The next tokens of one sequence, by any key. A new key begins a sequence."""

    key: Hashable
    tokens: list[int]


@dataclass(slots=True)
class _Fed:
    tokens: list[int]
    kv: SequenceKV


class ForcedModel:
    """One loaded decoder and the sequences it has been fed. A context manager.

    ``kv`` names the type of keys and values. Raises ConfigError for a mode or type that this build
    does not have, and for a model that does not generate; ModelFileError and OutOfMemory as
    loading does.
    """

    def __init__(
        self,
        path: Path,
        *,
        mode: Mode = "exact",
        kv: KVDtype = "f32",
        threads: int = 0,
        memory_bytes: int = 0,
    ) -> None:
        settings = DeviceSettings(
            kernels_mode=mode,
            kv_dtype=kv,
            threads=threads,
            memory_bytes=memory_bytes,
            prefix_cache=False,
        )
        self._device = Device(settings)
        try:
            self._runner, self._instance = self._load(path)
        except BaseException:
            self._device.close()
            raise
        self._fed: dict[Hashable, _Fed] = {}

    def _load(self, path: Path) -> tuple[TorchRunner, GenerateInstance]:
        clock, name = SystemClock(), path.stem
        alone = Engine(self._device, clock, lambda event: None).neighbours(name)
        instance = self._device.load(LoadModel(name, str(path)), clock, alone, lambda pages: False)
        if not isinstance(instance, GenerateInstance):
            raise ConfigError(f"{path} holds an encoder; only models that generate can be measured")
        if not isinstance(instance.executor, TorchRunner):
            raise ConfigError(f"{self._device.name} does not show logits")
        kernels = instance.executor.model.kernels
        if isinstance(kernels, ScratchKernels):  # all logits of long texts: more than serving takes
            kernels.use_scratch(HeapMemory())
        return instance.executor, instance

    @property
    def kernels(self) -> str:
        """The kernels that run, for a person."""
        return self._runner.model.kernels.describe()

    def step(self, feeds: list[Feed], *, wanted: bool = True) -> Tensor:
        """Logits (T, V) of all the tokens fed, in order; none (0, V) where they are not wanted."""
        batch = self._batch(feeds, wanted)
        with torch.inference_mode(), self._runner.model.kernels.scope():
            logits_TV = self._runner.model.forward(batch).clone()
        for feed in feeds:
            fed = self._fed[feed.key]
            hashes = block_hashes(fed.tokens, self._runner.cache.block_tokens)
            self._runner.cache.advance(fed.kv, fed.tokens, hashes, len(fed.tokens))
        return logits_TV

    def _batch(self, feeds: list[Feed], wanted: bool) -> ForwardBatch:
        context = [self._extend(feed) for feed in feeds]
        counts = [len(feed.tokens) for feed in feeds]
        positions = [np.arange(c, c + n) for c, n in zip(context, counts, strict=True)]
        return ForwardBatch(
            tokens_T=_int32([token for feed in feeds for token in feed.tokens]),
            positions_T=_int32(np.concatenate(positions)),
            starts_S1=_int32(np.cumsum([0, *counts])),
            context_S=_int32(context),
            tables=[self._tables(feeds, group) for group in range(len(self._runner.kv))],
            logit_rows_L=None if wanted else _int32([]),
            kv=self._runner.kv,
        )

    def _extend(self, feed: Feed) -> int:
        """Take blocks for the new tokens; gives the number of those before."""
        cache = self._runner.cache
        fed = self._fed.get(feed.key)
        if fed is None:
            fed = self._fed[feed.key] = _Fed([], cache.open(feed.tokens, []))
        before = len(fed.tokens)
        if not cache.reserve(fed.kv, before + len(feed.tokens)):
            raise ConfigError(f"no memory for {len(feed.tokens)} more tokens; raise device.memory")
        fed.tokens.extend(feed.tokens)
        return before

    def _tables(self, feeds: list[Feed], group: int) -> Tensor:
        rows = [self._runner.cache.table(self._fed[feed.key].kv, group) for feed in feeds]
        padded = np.full((len(rows), max(len(row) for row in rows)), -1)
        for out, row in zip(padded, rows, strict=True):
            out[: len(row)] = row
        return _int32(padded)

    def drop(self, key: Hashable) -> None:
        """End a sequence and give its blocks back."""
        self._runner.cache.close(self._fed.pop(key).kv)

    def close(self) -> None:
        for key in list(self._fed):
            self.drop(key)
        self._instance.close()
        self._device.close()

    def __enter__(self) -> ForcedModel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _int32(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.int32))
