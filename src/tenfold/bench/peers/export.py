"""A GGUF as an ordinary folder in float32, for engines that read no GGUF. Runs in transformers'
environment (with ``gguf``).

usage: python export.py MODEL.gguf FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def export(source: Path, target: Path) -> None:
    """Weights, config and tokenizer. Made beside its name first: half a folder never counts."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    model.save_pretrained(part)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(part)
    part.rename(target)


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
