"""Attention of prompts through FlashInfer, where that package is installed. Not yet run on a GPU.

The cache of one layer, (blocks, 2, K, block tokens, D), is what FlashInfer calls HND. Its wrapper
wants a plan on the host for each step; layers of one step share block tables, so a plan is made
when other tables come. Knows nothing of decode steps, graphs or models.
"""

from __future__ import annotations

import weakref
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

WORKSPACE_BYTES = 256 << 20
_DIMS = (64, 128, 256)


def find_flashinfer(device: torch.device) -> FlashInfer | None:
    """The adapter, or None where the package does not import."""
    try:
        return FlashInfer(import_module("flashinfer"), device)
    except ImportError:
        return None


class FlashInfer:
    """Adapter over the module's ``BatchPrefillWithPagedKVCacheWrapper``; one thread at a time."""

    def __init__(self, module: Any, device: torch.device) -> None:
        workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._wrapper = module.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
        self._planned: tuple[Any, ...] = ()
        self._tables: tuple[weakref.ref[Tensor], ...] = ()

    def takes(
        self, q_THD: Tensor, cache: Tensor, sinks_H: Tensor | None, lse_TH: Tensor | None
    ) -> bool:
        """Whether these shapes and types are among those it has kernels for."""
        half = q_THD.dtype in (torch.float16, torch.bfloat16) and cache.dtype is q_THD.dtype
        return half and q_THD.shape[2] in _DIMS and sinks_H is None and lse_TH is None

    def attend(
        self,
        q_THD: Tensor,
        cache: Tensor,
        layer: int,
        table_SB: Tensor,
        starts_S1: Tensor,
        context_S: Tensor,
        out_THD: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> None:
        """Causal attention into ``out``; the arguments are those of ``Kernels.paged_attention``."""
        tables = (table_SB, starts_S1, context_S)
        settings = (q_THD.shape[1:], q_THD.dtype, cache.shape[3:5], scale, window, softcap)
        known = len(self._tables) == 3 and all(
            ref() is x for ref, x in zip(self._tables, tables, strict=True)
        )
        if not known or settings != self._planned:
            self._plan(q_THD, cache, *tables, scale=scale, window=window, softcap=softcap)
            self._tables, self._planned = tuple(weakref.ref(x) for x in tables), settings
        self._wrapper.run(q_THD, cache[:, layer], out=out_THD)

    def _plan(
        self,
        q_THD: Tensor,
        cache: Tensor,
        table_SB: Tensor,
        starts_S1: Tensor,
        context_S: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> None:
        """Hand over which blocks hold each sequence. Waits for the device once."""
        block_tokens = cache.shape[4]
        ends = context_S + starts_S1.diff()
        blocks = torch.div(ends + block_tokens - 1, block_tokens, rounding_mode="floor")
        columns = torch.arange(table_SB.shape[1], device=table_SB.device)
        # Blocks behind a window are -1; any block will do there, as nothing of it is seen.
        indices = table_SB.clamp(min=0)[columns[None, :] < blocks[:, None]]
        indptr = running_sums(blocks)
        self._wrapper.plan(
            starts_S1, indptr, indices, (ends - 1) % block_tokens + 1,
            q_THD.shape[1], cache.shape[3], q_THD.shape[2], block_tokens,
            causal=True, sm_scale=scale, window_left=-1 if window is None else window - 1,
            logits_soft_cap=softcap, q_data_type=q_THD.dtype, kv_data_type=cache.dtype,
        )  # fmt: skip


def running_sums(counts: Tensor) -> Tensor:
    """Running sums that begin with 0, int32: (S,) -> (S + 1,)."""
    sums = counts.cumsum(0, dtype=torch.int32)
    return torch.cat([sums.new_zeros(1), sums])
