"""How byte-level BPE vocabularies cut text before merging, by the name a GGUF gives in
``tokenizer.ggml.pre``.

Each entry is what the models' own tokenizer.json does, which the merges were learned with. The
patterns are those tokenizers' public settings; nothing else would give the same ids. Knows nothing
of vocabularies.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

from tenfold.core.errors import ModelFileError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"

_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_UPPER}*{_LOWER}+|{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASHED}"


@dataclass(slots=True, frozen=True)
class PreTokenizer:
    """``pattern`` None: GPT-2's own. ``digits``: every digit alone, before the pattern is tried.

    ``ignore_merges``: a word that is in the vocabulary is one token, merges or not. ``adds_bos``:
    what the model does where its file does not say.
    """

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.nfc else None

    def build(self) -> pre_tokenizers.PreTokenizer:
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), behavior="isolated"))
        own = self.pattern is None
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own))
        return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


def pre_tokenizer(name: str) -> PreTokenizer:
    """The cutter a GGUF names. Raises ModelFileError for one that is not known here.

    A guess would serve a model that answers, but worse than it can: so there is none.
    """
    known = _known()
    if name not in known:
        raise ModelFileError(
            f"the GGUF cuts text with pre-tokenizer {name!r}, which is not known here; known are "
            f"{', '.join(sorted(known))}. Serve the model from a folder with tokenizer.json instead"
        )
    return known[name]


def _known() -> dict[str, PreTokenizer]:
    gpt2 = PreTokenizer()
    llama3 = PreTokenizer(_LLAMA3, ignore_merges=True, adds_bos=True)
    qwen2 = PreTokenizer(_QWEN2, nfc=True)
    return {
        "default": gpt2,
        "gpt-2": gpt2,
        "smollm": PreTokenizer(digits=True),
        "llama-bpe": llama3,
        "llama3": llama3,
        "llama-v3": llama3,
        "qwen2": qwen2,
        "tekken": PreTokenizer(_TEKKEN, ignore_merges=True, adds_bos=True),
    }
