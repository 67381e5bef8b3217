"""vLLM as a peer: its asynchronous engine with its own engine process, without HTTP.

It reads the dequantised folder, as this build reads no GGUF. Options: ``dtype`` ("best" is bfloat16
where the processor multiplies it, else float32), ``eager`` leaves compiling out. On a GPU it takes
the device's memory share that holds the capacity asked for.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

BLOCK = 128
"""Tokens a block of its CPU cache."""


class Engine:
    """One AsyncLLM. The environment must be set before vLLM is imported."""

    async def start(self, job: dict[str, Any]) -> dict[str, Any]:
        environment = _environment(job["threads"]) if job["device"] == "cpu" else {}
        os.environ.update(environment)
        import vllm
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = {
            "model": job["model"],
            "dtype": _dtype(job),
            "max_model_len": job["length"],
            "max_num_seqs": job["streams"],
            "enable_prefix_caching": True,
            "enforce_eager": job["options"]["eager"],
            "skip_tokenizer_init": True,
        }
        if job["device"] == "cpu":
            arguments["num_gpu_blocks_override"] = job["capacity"] // BLOCK
            arguments["block_size"] = BLOCK
        self.engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(**arguments, disable_log_stats=True)
        )
        self.count = 0
        settings = {
            **arguments,
            "model": Path(job["model"]).name,
            "threads": job["threads"],
            **environment,
            "api": "AsyncLLM and its engine process, without HTTP",
        }
        return {"version": vllm.__version__, "settings": settings, "weights": job["model"]}

    async def stream(self, prompt: list[int], output: int) -> AsyncIterator[list[int]]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self.count += 1
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=output,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        asked = {"prompt_token_ids": prompt}
        async for part in self.engine.generate(asked, sampling, str(self.count)):
            fresh = list(part.outputs[0].token_ids)
            if fresh:
                yield fresh

    async def stop(self) -> None:
        self.engine.shutdown()


def _environment(threads: int) -> dict[str, str]:
    """All the threads for the engine: by itself vLLM keeps a core for its front."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


def _dtype(job: dict[str, Any]) -> str:
    wanted = str(job["options"]["dtype"])
    if wanted != "best":
        return wanted
    if job["device"] != "cpu":
        return "bfloat16"
    words = set(Path("/proc/cpuinfo").read_text().split())
    return "bfloat16" if words & {"avx512_bf16", "amx_bf16"} else "float32"
