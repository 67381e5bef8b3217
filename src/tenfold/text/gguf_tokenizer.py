"""A tokenizer from GGUF metadata: byte-level BPE ("gpt2") and SentencePiece BPE ("llama").

The result equals the model's own tokenizer.json as far as the file allows. Where it matters
(pre-tokenizers) a GGUF only names what the original does; see ``pretokenizers``. Knows nothing of
files.
"""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from tenfold.core.errors import ModelFileError
from tenfold.text.bytelevel import spell, spelled_bytes
from tenfold.text.gguf_metadata import Metadata
from tenfold.text.pretokenizers import PreTokenizer, pre_tokenizer
from tenfold.text.tokenizer import END_OF_TURN, TokenizerParts

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_ROLES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
    "sep_token": "seperator",  # the format's own spelling
    "cls_token": "cls",
    "mask_token": "mask",
}
_SPACE = "▁"
_LONGEST_MERGE = 512


def gguf_parts(metadata: Metadata) -> TokenizerParts:
    """Build the tokenizer a GGUF describes. Raises ModelFileError for kinds that are not known."""
    kind = metadata.get("tokenizer.ggml.model")
    tokens = _list(metadata, "tokens")
    try:
        if kind == "gpt2":
            cut = pre_tokenizer(str(metadata.get("tokenizer.ggml.pre", "default")))
            backend, bos = _byte_level(metadata, tokens, cut), cut.adds_bos
        elif kind == "llama":
            backend, bos = _sentencepiece(metadata, tokens), True
        else:
            raise ModelFileError(
                f"the GGUF has a tokenizer of kind {kind!r}; 'gpt2' and 'llama' can be read. "
                "Serve the model from a folder with tokenizer.json instead"
            )
    except ModelFileError:
        raise
    except Exception as exc:  # the Rust side raises bare Exception for inconsistent vocabularies
        raise ModelFileError(f"the GGUF's tokenizer is inconsistent: {exc}") from exc
    roles = _roles(metadata, tokens)
    _add_tokens(backend, metadata, tokens, roles)
    backend.post_processor = _post_processor(
        backend,
        roles.get("bos_token") if metadata.get("tokenizer.ggml.add_bos_token", bos) else None,
        roles.get("eos_token") if metadata.get("tokenizer.ggml.add_eos_token", False) else None,
    )
    return TokenizerParts(backend, roles, _eos_ids(backend, metadata, roles), len(tokens))


def _list(metadata: Metadata, name: str) -> list[str]:
    found = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not found or not isinstance(found[0], str):
        raise ModelFileError(f"the GGUF has no tokenizer.ggml.{name}, so no text can be made ids")
    return found


def _types(metadata: Metadata, tokens: Sequence[str]) -> list[int]:
    found = metadata.get("tokenizer.ggml.token_type")
    return (
        found if isinstance(found, list) and len(found) == len(tokens) else [_NORMAL] * len(tokens)
    )


def _byte_level(
    metadata: Metadata, tokens: Sequence[str], cut: PreTokenizer
) -> tokenizers.Tokenizer:
    # A plain token outside the byte alphabet was written as its text by the converter.
    vocab = {
        token if kind != _NORMAL or spelled_bytes(token) is not None else spell(token.encode()): id
        for id, (token, kind) in enumerate(zip(tokens, _types(metadata, tokens), strict=True))
    }
    merges = [_pair(merge) for merge in _list(metadata, "merges")]
    backend = tokenizers.Tokenizer(BPE(vocab, merges, ignore_merges=cut.ignore_merges))
    if (normalizer := cut.normalizer()) is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = cut.build()
    backend.decoder = decoders.ByteLevel()
    return backend


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _sentencepiece(metadata: Metadata, tokens: Sequence[str]) -> tokenizers.Tokenizer:
    gemma = str(metadata.get("general.architecture", "")).startswith("gemma")
    if gemma:  # its runs of spaces are stored as spaces, yet stand for the normalised text
        tokens = [_SPACE * len(t) if " " in t and not t.strip(" ") else t for t in tokens]
    vocab = {token: id for id, token in enumerate(tokens)}
    if "tokenizer.ggml.merges" in metadata:
        merges = [_pair(merge) for merge in _list(metadata, "merges")]
    elif gemma:  # scores do not follow its merge order, positions do
        merges = _merges_by_position(tokens)
    else:
        merges = _merges_by_score(tokens, metadata.get("tokenizer.ggml.scores"))
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    backend = tokenizers.Tokenizer(
        BPE(
            vocab,
            merges,
            fuse_unk=True,
            byte_fallback=True,
            unk_token=None if unknown is None else tokens[unknown],
        )
    )
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", not gemma):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, "first", split=False)
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = normalizers.Replace(" ", _SPACE)
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges_by_position(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Every way to make a token of two others: results in vocabulary order, long left parts first.

    Over a million cuts for Gemma: one comprehension, and the rarer hit (the right part) first.
    """
    known = frozenset(tokens)
    return [
        (left, right)
        for token in tokens
        for cut in range(min(len(token), _LONGEST_MERGE) - 1, 0, -1)
        if (right := token[cut:]) in known and (left := token[:cut]) in known
    ]


def _merges_by_score(tokens: Sequence[str], scores: object) -> list[tuple[str, str]]:
    """SentencePiece's merges, which its files do not list: best score of the result first.

    Ties go to the longer left part, then the longer right part, then the smaller id, which is the
    order transformers' ``generate_merges`` arrives at.
    """
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelFileError(
            "the GGUF has neither tokenizer.ggml.merges nor a score for each token"
        )
    score = dict(zip(tokens, scores, strict=True))
    merges = _merges_by_position(tokens)
    merges.sort(key=lambda pair: (-score[pair[0] + pair[1]], -len(pair[0]), -len(pair[1])))
    return merges


def _roles(metadata: Metadata, tokens: Sequence[str]) -> dict[str, str]:
    roles = {}
    for role, key in _ROLES.items():
        id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(id, int) and 0 <= id < len(tokens):
            roles[role] = tokens[id]
    return roles


def _add_tokens(
    backend: tokenizers.Tokenizer, metadata: Metadata, tokens: Sequence[str], roles: dict[str, str]
) -> None:
    """Control tokens become special, user-defined ones are kept whole in text."""
    named = set(roles.values())
    added = []
    for token, kind in zip(tokens, _types(metadata, tokens), strict=True):
        special = kind == _CONTROL or token in named
        # A token the vocabulary respelled (runs of spaces) is reached by its merges.
        if (special or kind == _USER_DEFINED) and backend.token_to_id(token) is not None:
            added.append(AddedToken(token, normalized=False, special=special))
    backend.add_tokens(added)


def _post_processor(
    backend: tokenizers.Tokenizer, bos: str | None, eos: str | None
) -> TemplateProcessing:
    def around(text: str, type_id: int) -> list[str]:
        return [f"{part}:{type_id}" for part in (bos, text, eos) if part is not None]

    used = [(token, backend.token_to_id(token)) for token in (bos, eos) if token is not None]
    return TemplateProcessing(
        single=around("$A", 0), pair=around("$A", 0) + around("$B", 1), special_tokens=used
    )


def _eos_ids(backend: tokenizers.Tokenizer, metadata: Metadata, roles: dict[str, str]) -> list[int]:
    """The file's own end first, then its ends of turn and message, then the usual names."""
    named = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    special = {t.content: id for id, t in backend.get_added_tokens_decoder().items() if t.special}
    usual = [special.get(name) for name in END_OF_TURN]
    return list(dict.fromkeys(id for id in [*named, *usual] if isinstance(id, int)))
