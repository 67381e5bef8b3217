"""The models that share one machine in ``tenfold bench models``.

Two real ones under two names each, every name with weights of its own in memory, and small ones
with random weights, one for each other way of building a decoder. Knows nothing of what is
measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.core.messages import ModelOptions
from tenfold.fleet.served import ModelSource

RANDOM = "random:"

TINY_VOCABULARY = 304
"""Tokens that the made models' tokenizer knows."""


@dataclass(slots=True, frozen=True)
class Member:
    """``source``: a catalogue name, a path, or ``random:`` and a family of ``models.tiny``."""

    name: str
    source: str

    @property
    def vocabulary(self) -> int:
        """Tokens it may be sent; 0: any that workloads make up."""
        return TINY_VOCABULARY if self.source.startswith(RANDOM) else 0


FLEET = (
    Member("smol-a", "smollm2-135m"),
    Member("smol-b", "smollm2-135m"),
    Member("gemma-a", "gemma3-270m"),
    Member("gemma-b", "gemma3-270m"),
    Member("mistral", "random:mistral"),
    Member("qwen3", "random:qwen3"),
    Member("mixtral", "random:mixtral"),
    Member("qwen2-moe", "random:qwen2_moe"),
)

TINY_FLEET = tuple(
    Member(f"{family.partition('_')[0]}-{n}", f"random:{family}")
    for n, family in enumerate(("llama", "gemma3_text", "qwen3_moe"))
)
"""For a look whether everything runs: seconds, not hours."""

_SHAPE: dict[str, Any] = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
}

_EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 256},
    "qwen2_moe": {"moe_intermediate_size": 128, "shared_expert_intermediate_size": 256},
    "qwen3_moe": {"moe_intermediate_size": 128},
}
"""So that experts together weigh what the others' layers do: 45 to 65 MiB a model."""


def sources(
    fleet: Sequence[Member], folder: Path, *, small: bool = False
) -> dict[str, ModelSource]:
    """Every member's files, by name. Random models are written to ``folder`` once; ``small``: of
    some 100 KiB. Raises what the store raises for a model that cannot be had."""
    return {
        one.name: ModelSource(one.name, _path(one, folder, small), ModelOptions()) for one in fleet
    }


def _path(member: Member, folder: Path, small: bool) -> str:
    if member.source.startswith(RANDOM):
        family = member.source.removeprefix(RANDOM)
        return str(_made(family, folder / f"{family}{'-small' if small else ''}", small))
    from tenfold.fleet.assemble import find_source

    return find_source(member.source, None).path


def _made(family: str, folder: Path, small: bool) -> Path:
    if (folder / "tokenizer_config.json").exists():  # what is written last
        return folder
    from tenfold.models.tiny import make_tiny

    shape = {"max_position_embeddings": 2048} if small else _SHAPE | _EXPERTS.get(family, {})
    return make_tiny(family, folder, **shape)
