"""Drives a decoder over a paged cache as an engine would: many sequences, odd chunks and blocks.

Blocks are handed out in a shuffled order, hold large numbers from a former life, and go back (as -1
in the table) once a sliding window has passed them. What a model reads wrongly, it shows.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from tenfold.models.batch import ForwardBatch
from tenfold.models.decoder import Decoder

STALE = 1000.0


class PagedRun:
    """One model's cache and its sequences, by any key."""

    def __init__(
        self, model: Decoder, *, block_tokens: int = 16, blocks: int = 96, seed: int = 0
    ) -> None:
        self.model = model
        self.block_tokens = block_tokens
        self.context: dict[object, int] = {}
        self.tables: list[dict[object, list[int]]] = [{} for _ in model.kv_groups]
        self.kv = [
            torch.full((blocks, len(g.layers), 2, g.kv_heads, block_tokens, g.head_dim), STALE)
            for g in model.kv_groups
        ]
        self.free = [list(range(blocks)) for _ in model.kv_groups]
        for order in self.free:
            random.Random(seed).shuffle(order)

    def step(self, work: dict[object, list[int]], rows: str = "all") -> dict[object, Tensor]:
        """Feed each sequence its next tokens; gives logits of all of them, or of the last one."""
        batch = self._batch(work, rows)
        with torch.inference_mode():
            logits = self.model.forward(batch)
        counts = [len(tokens) if rows == "all" else 1 for tokens in work.values()]
        for key, tokens in work.items():
            self.context[key] = self.context.get(key, 0) + len(tokens)
        return dict(zip(work, torch.split(logits, counts), strict=True))

    def _batch(self, work: dict[object, list[int]], rows: str) -> ForwardBatch:
        starts, positions, context, tokens = [0], [], [], []
        for key, new in work.items():
            first = self.context.get(key, 0)
            context.append(first)
            tokens += new
            positions += range(first, first + len(new))
            starts.append(len(tokens))
        last = [start - 1 for start in starts[1:]]
        return ForwardBatch(
            tokens_T=_int32(tokens),
            positions_T=_int32(positions),
            starts_S1=_int32(starts),
            context_S=_int32(context),
            tables=[self._table(group, work) for group in range(len(self.kv))],
            logit_rows_L=_int32(list(range(len(tokens))) if rows == "all" else last),
            kv=self.kv,
        )

    def _table(self, group: int, work: dict[object, list[int]]) -> Tensor:
        window, size = self.model.kv_groups[group].window, self.block_tokens
        tables = []
        for key, new in work.items():
            first = self.context.get(key, 0)
            table = self.tables[group].setdefault(key, [])
            while len(table) * size < first + len(new):
                table.append(self.free[group].pop())
            if window is not None:
                for block in range(max(0, first - window + 1) // size):
                    if table[block] >= 0:
                        self.kv[group][table[block]] = STALE
                        self.free[group].insert(0, table[block])
                        table[block] = -1
            tables.append(table)
        longest = max(len(table) for table in tables)
        return _int32([table + [-1] * (longest - len(table)) for table in tables])


def greedy(model: Decoder, prompt: list[int], count: int, blocks: int = 96) -> list[int]:
    """The most likely continuation, token by token."""
    run = PagedRun(model, blocks=blocks)
    logits = run.step({0: prompt}, "last")[0]
    out = [int(logits[-1].argmax())]
    while len(out) < count and out[-1] not in model.spec.eos_ids:
        out.append(int(run.step({0: out[-1:]}, "last")[0][-1].argmax()))
    return out


def worst_share(got: Tensor, wanted: Tensor) -> float:
    """Largest difference of any logit, as a share of its row's largest logit."""
    return float(((got - wanted).abs().amax(-1) / wanted.abs().amax(-1)).max())


def _int32(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
