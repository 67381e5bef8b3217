"""transformers as a peer: the model's forward on a batch, greedy, in a loop of our own.

It leaves out what ``generate`` adds to every step, so it is a little faster than that. On a CPU:
float32 from the dequantised folder, growing cache. Option ``static``: a static cache and a compiled
step in bfloat16, for a GPU. All streams must be of one length, as they are in these cases.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

Rows = list[list[int]]


class Engine:
    """One model; a batch and its cache are one group of streams."""

    def start(self, job: dict[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(job["threads"])
        torch.set_grad_enabled(False)
        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        self.device = job["device"]
        self.static = bool(job["options"]["static"])
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        model = AutoModelForCausalLM.from_pretrained(
            job["model"], dtype=dtype, attn_implementation="sdpa"
        )
        self.model: Any = model.to(self.device).eval()
        self.step: Any = self.model
        if self.static:
            self.step = torch.compile(self.model, mode="reduce-overhead", fullgraph=True)
        self.prepare(job["streams"], job["length"])
        settings = {
            "weights": Path(job["model"]).name,
            "threads": job["threads"],
            "dtype": str(dtype).removeprefix("torch."),
            "attention": "sdpa",
            "cache": "static, step compiled" if self.static else "dynamic",
            "prefix_caching": "system prompt computed once, its cache copied to every stream",
            "api": "model forward, streams step together",
        }
        return {"version": transformers.__version__, "settings": settings, "weights": job["model"]}

    def prepare(self, streams: int, length: int) -> None:
        self.streams, self.length = streams, length
        self.reset()

    def reset(self) -> None:
        self.used = 0
        self.cache: Any = None
        if self.static:
            self.cache = StaticCache(config=self.model.config, max_cache_len=self.length)

    def share(self, prefix: list[int], streams: int) -> None:
        if self.static:  # its buffers have one batch size: the prefix is computed for every stream
            for _ in self.extend([prefix] * streams):
                pass
            return
        for _ in self.extend([prefix]):
            pass
        self.cache = copy.deepcopy(self.cache)
        self.cache.batch_repeat_interleave(streams)

    def extend(self, rows: Rows) -> Iterator[tuple[int, int]]:
        ids = torch.tensor(rows, device=self.device)
        if self.cache is None:
            self.cache = DynamicCache(config=self.model.config)
        step = self.step if ids.shape[1] == 1 else self.model
        positions = torch.arange(self.used, self.used + ids.shape[1], device=self.device)
        out = step(
            input_ids=ids,
            position_ids=positions[None].expand(ids.shape[0], -1),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.used += ids.shape[1]
        yield from enumerate(out.logits[:, -1].argmax(-1).tolist())

    def stop(self) -> None:
        self.cache = None
