"""What a GPU can do and what Tenfold gets out of it, one part at a time, each as plain numbers.

``python -m tenfold.engine.cuda_measure PART`` prints one JSON object on its last line; the parts
run in processes of their own so that each begins with an empty device. Not yet run on a GPU. Knows
nothing of time limits or reports.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from typing import Any

import torch

from tenfold.core.errors import ConfigError
from tenfold.engine.cuda_shapes import (
    ShapedModel,
    best_seconds,
    decode_seconds,
    llama_8b,
    prefill_seconds,
)
from tenfold.kernels.cuda_graphs import Graphs
from tenfold.kernels.cuda_staging import CudaCopies
from tenfold.kernels.flashinfer_adapter import find_flashinfer
from tenfold.kernels.triton_column import TritonKernels
from tenfold.memory.backends import open_backend

PROMPT = 8192
STREAMS = 64
PAST = 1024


def rates(device: torch.device) -> dict[str, Any]:
    """Copy bandwidth (bytes read plus written) and the rate of a bf16 product, best of many."""
    free, total = torch.cuda.mem_get_info(device)
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": total,
        "torch": torch.__version__,
        "copy_bytes_per_second": _copy_rate(device, min(4 << 30, free // 4)),
        "bf16_flops_per_second": _product_rate(device, 8192),
    }


def _copy_rate(device: torch.device, size: int) -> float:
    source = torch.empty(size, dtype=torch.uint8, device=device)
    goal = torch.empty_like(source)
    return 2 * size / best_seconds(lambda: goal.copy_(source), device, 20)


def _product_rate(device: torch.device, n: int) -> float:
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / best_seconds(lambda: torch.mm(a, b), device, 30)


def pages(device: torch.device) -> dict[str, Any]:
    """Seconds per page to map fresh memory, to give it back, and to take it from the spare ones."""
    backend = open_backend("cuda", 2 << 20, device=device.index)
    count = 256
    space = backend.reserve(count)
    found: dict[str, Any] = {"pages": count, "page_bytes": 2 << 20}
    for name in ("map_fresh", "unmap", "map_spare", "unmap_again"):
        begin = time.perf_counter()
        if name.startswith("map"):
            backend.map(space, 0, count)
        else:
            backend.unmap(space, 0, count)
        found[f"{name}_seconds"] = (time.perf_counter() - begin) / count
    backend.close()
    return found


def shaped(device: torch.device) -> dict[str, Any]:
    """The 8B shape: one stream, many streams, and a long prompt, with and without FlashInfer."""
    kernels = TritonKernels(device, graphs=Graphs())
    model = ShapedModel(llama_8b(PROMPT + 256), kernels)
    copies = CudaCopies(device)
    one = decode_seconds(model, copies, streams=1, past=128, steps=128)
    torch.cuda.empty_cache()
    many = decode_seconds(model, copies, streams=STREAMS, past=PAST, steps=64)
    torch.cuda.empty_cache()
    prompt = prefill_seconds(model, PROMPT, 5)
    found: dict[str, Any] = {
        "kernels": kernels.describe(),
        "weight_bytes_per_token": model.read_bytes,
        "decode_1_tokens_per_second": 1 / one,
        "decode_1_weight_bytes_per_second": model.read_bytes / one,
        "streams": STREAMS,
        "past": PAST,
        "decode_many_tokens_per_second": STREAMS / many,
        "prompt_tokens": PROMPT,
        "prefill_tokens_per_second": PROMPT / prompt,
        "prefill_flops_per_second": model.flops(PROMPT) / prompt,
    }
    other = find_flashinfer(device)
    if other is not None:
        del model
        torch.cuda.empty_cache()
        again = ShapedModel(llama_8b(PROMPT + 256), TritonKernels(device, flashinfer=other))
        seconds = prefill_seconds(again, PROMPT, 5)
        found["prefill_flashinfer_tokens_per_second"] = PROMPT / seconds
    return found


def transformers(device: torch.device) -> dict[str, Any]:
    """The same shape in transformers: static cache, its own compilation; seconds of a decode step.

    Stamps are taken where generation asks whether to stop, which is once a token."""
    try:
        package: Any = import_module("transformers")
    except ImportError as exc:
        return {"skipped": f"transformers does not import: {exc}"}

    class Stamps(package.StoppingCriteria):  # type: ignore[misc]
        def __init__(self) -> None:
            self.at: list[float] = []

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            torch.cuda.synchronize(device)
            self.at.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool, device=device)

    spec = llama_8b(PAST + 256)
    config = package.LlamaConfig(
        vocab_size=spec.vocab, hidden_size=spec.hidden, intermediate_size=spec.ffn,
        num_hidden_layers=spec.layers, num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads, max_position_embeddings=PAST + 256,
        rope_theta=5e5, tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = package.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, spec.vocab, (STREAMS, PAST), device=device)
    steps: list[float] = []
    for _ in range(2):  # the first compiles
        stamps = Stamps()
        model.generate(
            ids, do_sample=False, max_new_tokens=48, min_new_tokens=48, eos_token_id=None,
            pad_token_id=0, cache_implementation="static", stopping_criteria=[stamps],
        )  # fmt: skip
        steps = sorted(b - a for a, b in zip(stamps.at[8:], stamps.at[9:], strict=False))
    return {
        "transformers": package.__version__,
        "streams": STREAMS,
        "past": PAST,
        "decode_many_tokens_per_second": STREAMS / steps[len(steps) // 2],
    }


def main(part: str) -> dict[str, Any]:
    """The numbers of one part. Raises ConfigError without a CUDA device or for another name."""
    parts = {"rates": rates, "pages": pages, "shaped": shaped, "transformers": transformers}
    if part not in parts:
        raise ConfigError(f"unknown part {part!r}; known: {', '.join(parts)}")
    if not torch.cuda.is_available():
        raise ConfigError(f"torch {torch.__version__} sees no CUDA device here")
    torch.cuda.set_device(0)
    return parts[part](torch.device("cuda", 0))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
