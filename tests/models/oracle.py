"""transformers as the oracle: float32 logits of whole prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Oracle:
    """A causal model loaded by transformers from a folder, or from a GGUF file made float32."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM, GgufConfig

        source: dict[str, Any] = {"pretrained_model_name_or_path": path}
        if path.is_file():
            source = {
                "pretrained_model_name_or_path": path.parent,
                "gguf_file": path.name,
                "quantization_config": GgufConfig(dequantize=True),
            }
        self.model, info = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, output_loading_info=True
        )
        # Otherwise the oracle would have filled a hole with random weights.
        assert not info["missing_keys"], info["missing_keys"]
        self.model.eval()

    def logits(self, tokens: list[int]) -> Tensor:
        with torch.inference_mode():
            return self.model(torch.tensor([tokens])).logits[0]
