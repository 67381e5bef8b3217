"""llama.cpp as a peer, through the low-level API of llama-cpp-python. Imports nothing of tenfold.

usage: python llama_cpp_peer.py MODEL.gguf THREADS MAX_STREAMS MAX_TOKENS_PER_STREAM
Settings: separate KV per sequence (the unified cache is slower with many), prompts in batches of
512, greedy choice from raw logits, all layers on the CPU.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp  # type: ignore[import-not-found]
import numpy as np


class LlamaCpp:
    """One loaded model; every job starts from an empty cache."""

    def __init__(self, path: str, threads: int, streams: int, length: int) -> None:
        self.api: Any = llama_cpp
        self.api.llama_backend_init()
        quiet = self.api.llama_log_callback(lambda level, text, data: None)
        self._quiet = quiet
        self.api.llama_log_set(quiet, ctypes.c_void_p(0))
        model_params = self.api.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = self.api.llama_model_load_from_file(path.encode(), model_params)
        params = self.api.llama_context_default_params()
        params.n_ctx = streams * length
        params.n_batch = params.n_ubatch = 512
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = False
        self.context = self.api.llama_init_from_model(self.model, params)
        self.vocab = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        self.batch = self.api.llama_batch_init(max(512, streams), 0, 1)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """rows: (token, position, sequence, logits wanted)."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        if self.api.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def _best(self, row: int) -> int:
        logits = self.api.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())

    def run(self, prompts: list[list[int]], output: int) -> dict[str, Any]:
        """All prompts together: prefill one after another, then decode in lockstep."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        began = time.perf_counter()
        times: list[list[float]] = []
        tokens = []
        for sequence, prompt in enumerate(prompts):
            for start in range(0, len(prompt), 512):
                piece = prompt[start : start + 512]
                last = start + len(piece) == len(prompt)
                rows = [
                    (t, start + i, sequence, last and i == len(piece) - 1)
                    for i, t in enumerate(piece)
                ]
                self._decode(rows)
            tokens.append(self._best(len(piece) - 1))
            times.append([time.perf_counter() - began])
        for step in range(output - 1):
            self._decode([(t, len(prompts[s]) + step, s, True) for s, t in enumerate(tokens)])
            tokens = [self._best(row) for row in range(len(tokens))]
            now = time.perf_counter() - began
            for row in times:
                row.append(now)
        return {"times": times}


def main() -> None:
    path, threads, streams, length = sys.argv[1], *map(int, sys.argv[2:5])
    engine = LlamaCpp(path, threads, streams, length)
    print(json.dumps({"ready": True, "version": llama_cpp.__version__}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(engine.run(job["prompts"], job["output"])), flush=True)


if __name__ == "__main__":
    main()
