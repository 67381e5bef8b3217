"""llama.cpp as a peer: llama-cpp-python's low-level API, many sequences in one context.

Options: ``format`` "shipped" (the file as it is) or "q4_0" (requantised once into ``cache``; the
format llama.cpp repacks, its fastest). The wheel ships no C++ server, and ``llama_cpp.server``
handles one request at a time, so many streams are only fair through this API: prompts are computed
first, then all sequences step together, which is the most a server above it could get.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp as api
import numpy as np

BATCH = 2048
MICRO_BATCH = 512
MOSTLY_Q4_0 = 2


class Engine:
    """One loaded model. ``prepare`` makes a context that fits the case."""

    def start(self, job: dict[str, Any]) -> dict[str, Any]:
        api.llama_backend_init()
        self._quiet = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self._quiet, ctypes.c_void_p(0))
        path = Path(job["model"])
        if job["options"]["format"] == "q4_0":
            path = requantised(path, Path(job["cache"]), job["threads"])
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = api.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.threads = job["threads"]
        self.context: Any = None
        self.batch = api.llama_batch_init(BATCH, 0, 1)
        self.prepare(job["streams"], job["length"])
        settings = {
            "weights": path.name,
            "threads": self.threads,
            "kv_unified": False,
            "kv_dtype": "f16",
            "flash_attn": "auto",
            "n_batch": BATCH,
            "n_ubatch": MICRO_BATCH,
            "prefix_caching": "system prompt computed once, copied to every sequence",
            "api": "low-level, sequences step together",
            "features": api.llama_print_system_info().decode().strip(),
        }
        return {"version": api.__version__, "settings": settings, "weights": str(path)}

    def prepare(self, streams: int, length: int) -> None:
        if self.context:
            api.llama_free(self.context)
        params = api.llama_context_default_params()
        params.n_seq_max = streams
        params.n_ctx = streams * -(-length // 256) * 256  # llama.cpp pads a sequence to 256
        params.n_batch, params.n_ubatch = BATCH, MICRO_BATCH
        params.n_threads = params.n_threads_batch = self.threads
        params.kv_unified = False
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"no llama.cpp context for {streams} streams of {length} tokens")
        self.lengths = [0] * streams

    def reset(self) -> None:
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        self.lengths = [0] * len(self.lengths)

    def share(self, prefix: list[int], streams: int) -> None:
        for _ in self.extend([prefix]):
            pass
        memory = api.llama_get_memory(self.context)
        for stream in range(1, streams):
            api.llama_memory_seq_cp(memory, 0, stream, -1, -1)
            self.lengths[stream] = len(prefix)

    def extend(self, rows: list[list[int]]) -> Iterator[tuple[int, int]]:
        """Rows that fit go into one batch together; a longer one goes in pieces."""
        waiting: list[tuple[int, int, int, bool]] = []
        for stream, row in enumerate(rows):
            if waiting and len(waiting) + len(row) > MICRO_BATCH:
                yield from self._decode(waiting)
                waiting = []
            start = self.lengths[stream]
            for i, token in enumerate(row):
                waiting.append((token, start + i, stream, i == len(row) - 1))
                if len(waiting) == BATCH:
                    yield from self._decode(waiting)
                    waiting = []
            self.lengths[stream] += len(row)
        if waiting:
            yield from self._decode(waiting)

    def _decode(self, items: list[tuple[int, int, int, bool]]) -> Iterator[tuple[int, int]]:
        """items: (token, position, stream, logits wanted)."""
        batch = self.batch
        batch.n_tokens = len(items)
        for i, (token, position, stream, wanted) in enumerate(items):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, stream
            batch.logits[i] = wanted
        code = api.llama_decode(self.context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode answered {code} for {len(items)} tokens")
        for i, (_, _, stream, wanted) in enumerate(items):
            if wanted:
                logits = api.llama_get_logits_ith(self.context, i)
                yield stream, int(np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax())

    def stop(self) -> None:
        api.llama_free(self.context)
        api.llama_model_free(self.model)


def requantised(source: Path, cache: Path, threads: int) -> Path:
    """The model in Q4_0, made once. Written beside its name first: a broken file never counts."""
    target = cache / f"{source.stem}.q4_0.gguf"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        params = api.llama_model_quantize_default_params()
        params.ftype = MOSTLY_Q4_0
        params.allow_requantize = True
        params.nthread = threads
        part = target.with_suffix(".part")
        code = api.llama_model_quantize(
            str(source).encode(), str(part).encode(), ctypes.byref(params)
        )
        if code != 0:
            raise RuntimeError(f"llama_model_quantize answered {code} for {source}")
        part.rename(target)
    return target
