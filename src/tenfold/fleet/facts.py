"""What a checkpoint says of itself, for people to read: from a GGUF header or a config.json.

Never touches the weights. Knows nothing of how a model is built: the loaders read for themselves.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from tenfold.core.errors import ModelFileError

Facts = dict[str, str | int | float | bool]

_GGUF_NAMES = {
    "block_count": "layers",
    "embedding_length": "hidden size",
    "attention.head_count": "query heads",
    "attention.head_count_kv": "KV heads",
    "attention.sliding_window": "sliding window",
    "context_length": "context",
}
_CONFIG_NAMES = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden size",
    "num_attention_heads": "query heads",
    "num_key_value_heads": "KV heads",
    "sliding_window": "sliding window",
    "max_position_embeddings": "context",
    "vocab_size": "vocabulary",
}


def checkpoint_facts(path: Path) -> Facts:
    """Family, layers, widths, context, vocabulary, template, of a GGUF file or a folder.

    Raises ModelFileError where the file or its config.json cannot be read.
    """
    return _gguf_facts(path) if path.is_file() else _folder_facts(path)


def _gguf_facts(path: Path) -> Facts:
    # Imported here: the gguf package brings numpy, and the store itself needs neither.
    from tenfold.models.gguf_header import read_header

    header = read_header(path)
    family = str(header.metadata.get("general.architecture", "unknown"))
    facts: Facts = {"format": "GGUF", "family": family}
    for key, label in _GGUF_NAMES.items():
        if (value := header.metadata.get(f"{family}.{key}")) is not None:
            facts[label] = value
    facts["vocabulary"] = len(header.metadata.get("tokenizer.ggml.tokens", ()))
    facts["parameters"] = sum(math.prod(tensor.shape) for tensor in header.tensors.values())
    kinds = Counter(tensor.kind.upper() for tensor in header.tensors.values())
    facts["tensors"] = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    facts["chat template"] = "tokenizer.chat_template" in header.metadata
    return facts


def _folder_facts(path: Path) -> Facts:
    config = _json(path / "config.json")
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, dict) else config
    facts: Facts = {"format": "safetensors", "family": str(config.get("model_type", "unknown"))}
    for key, label in _CONFIG_NAMES.items():
        if (value := config.get(key)) is not None:
            facts[label] = value
    template = (path / "chat_template.jinja").exists()
    if not template and (path / "tokenizer_config.json").exists():
        template = "chat_template" in _json(path / "tokenizer_config.json")
    facts["chat template"] = template
    return facts


def check_has_weights(folder: Path) -> None:
    """Raises ModelFileError for a folder without a single file of weights that could be loaded."""
    if not any(any(folder.glob(pattern)) for pattern in ("*.gguf", "*.safetensors")):
        raise ModelFileError("it holds no weights, neither *.safetensors nor *.gguf")


def check_shards(folder: Path) -> None:
    """Raises ModelFileError when an index names a safetensors file that the folder lacks."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        shards = set(_json(index).get("weight_map", {}).values())
        missing = sorted(name for name in shards if not (folder / str(name)).is_file())
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelFileError(f"{index.name} names {missing[0]}{more}, which is not there")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ModelFileError(f"cannot read {path}: {' '.join(str(exc).split())}") from exc
    if not isinstance(found, dict):
        raise ModelFileError(f"{path} holds no JSON object")
    return found
