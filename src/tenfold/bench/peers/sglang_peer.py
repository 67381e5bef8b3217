"""SGLang as a peer, for GPUs: its offline engine with streamed answers.

Written after its documentation; it has not been run here, where there is no GPU.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any


class Engine:
    """One ``sglang.Engine`` with its own scheduler process; its radix cache is on."""

    async def start(self, job: dict[str, Any]) -> dict[str, Any]:
        import sglang

        arguments = {
            "model_path": job["model"],
            "dtype": "bfloat16",
            "context_length": job["length"],
            "max_running_requests": job["streams"],
            "max_total_tokens": job["capacity"],
            "skip_tokenizer_init": True,
            "log_level": "error",
        }
        self.engine = sglang.Engine(**arguments)
        settings = {
            **arguments,
            "model_path": Path(job["model"]).name,
            "api": "offline engine and its scheduler process, without HTTP",
        }
        return {"version": sglang.__version__, "settings": settings, "weights": job["model"]}

    async def stream(self, prompt: list[int], output: int) -> AsyncIterator[list[int]]:
        sampling = {"temperature": 0.0, "max_new_tokens": output, "ignore_eos": True}
        parts = await self.engine.async_generate(
            input_ids=prompt, sampling_params=sampling, stream=True
        )
        seen = 0
        async for part in parts:
            ids = part["output_ids"]
            if len(ids) > seen:
                yield list(ids[seen:])
                seen = len(ids)

    async def stop(self) -> None:
        self.engine.shutdown()
