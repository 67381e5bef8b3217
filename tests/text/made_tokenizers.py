"""Small trained tokenizers, as folders and as GGUF files, made without the code under test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import gguf
from corpus import TEXTS
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.models import BPE

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = QWEN_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_byte_level(
    pre: Sequence[pre_tokenizers.PreTokenizer] = (),
    *,
    nfc: bool = False,
    own_pattern: bool = True,
    ignore_merges: bool = False,
) -> Tokenizer:
    """A byte-level BPE of about 600 tokens, special tokens first."""
    tokenizer = Tokenizer(BPE(ignore_merges=ignore_merges))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own_pattern)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*pre, last])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS.values(), trainer)
    return tokenizer


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def train_sentencepiece(*, prefix: bool = True) -> Tokenizer:
    """A BPE with byte fallback as Llama 2 has it; ``prefix``: a space before the first word."""
    specials = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    scheme = "first" if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    words = pre_tokenizers.Metaspace("▁", scheme, split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=specials, limit_alphabet=120, show_progress=False
    )
    trained = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.pre_tokenizer = words
    trained.train_from_iterator([t for t in TEXTS.values() if "<0x" not in t], trainer)
    vocab = trained.get_vocab()
    merges = [tuple(m) for m in json.loads(trained.to_str())["model"]["merges"]]
    tokenizer.model = BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer.add_special_tokens(specials[:3])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", vocab["<s>"])]
    )
    return tokenizer


def save_folder(
    tokenizer: Tokenizer, folder: Path, config: dict[str, object] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def save_gguf(
    tokenizer: Tokenizer,
    path: Path,
    *,
    kind: str = "gpt2",
    pre: str | None = "default",
    architecture: str = "llama",
    bos: str | None = None,
    eos: str | None = None,
    extra: dict[str, object] | None = None,
) -> Path:
    """Write what converters write of a tokenizer: tokens, types, merges or scores, and roles."""
    writer = gguf.GGUFWriter(path, architecture)
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    special = {t.content: t.special for t in tokenizer.get_added_tokens_decoder().values()}
    writer.add_tokenizer_model(kind)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([_kind(token, special) for token in tokens])
    if kind == "gpt2":
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(merge) for merge in merges])
    else:
        writer.add_token_scores([-float(id) for id in range(len(tokens))])
    if bos is not None:
        writer.add_bos_token_id(vocab[bos])
    if eos is not None:
        writer.add_eos_token_id(vocab[eos])
    for key, value in (extra or {}).items():
        writer.add_key_value(key, value, _value_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _kind(token: str, special: dict[str, bool]) -> gguf.TokenType:
    if token in special:
        return gguf.TokenType.CONTROL if special[token] else gguf.TokenType.USER_DEFINED
    if len(token) == 6 and token.startswith("<0x"):
        return gguf.TokenType.BYTE
    return gguf.TokenType.NORMAL


def _value_type(value: object) -> gguf.GGUFValueType:
    if isinstance(value, bool):
        return gguf.GGUFValueType.BOOL
    return gguf.GGUFValueType.UINT32 if isinstance(value, int) else gguf.GGUFValueType.STRING
