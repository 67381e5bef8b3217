"""Tokenizers read from folders and GGUF files, against the trained originals and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from corpus import BYTE_STRINGS, NOT_UNICODE, TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import (
    LLAMA3_PATTERN,
    QWEN_PATTERN,
    save_folder,
    save_gguf,
    split,
    train_byte_level,
    train_sentencepiece,
)
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors

from tenfold.core.errors import InvalidRequest, ModelFileError
from tenfold.text.joining import REPLACEMENT
from tenfold.text.tokenizer import load_tokenizer

transformers = pytest.importorskip("transformers")

ENDS = {"bos": "<|endoftext|>", "eos": "<|im_end|>"}


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_byte_level()


@pytest.fixture(scope="module")
def folder(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("byte-level")
    return save_folder(trained, path, {"eos_token": "<|im_end|>", "pad_token": None})


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>"
    )


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    return load_tokenizer(folder)


class TestFolder:
    def test_corpus(self, ours: Any, oracle: Any) -> None:
        for text in TEXTS.values():
            ids = ours.encode(text)
            assert ids == oracle.encode(text)
            assert ours.decode(ids, skip_special=False) == oracle.decode(ids)
            assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)

    @settings(max_examples=300, deadline=None)
    @given(text=st.text(max_size=100))
    def test_any_text(self, ours: Any, oracle: Any, text: str) -> None:
        ids = ours.encode(text)
        assert ids == oracle.encode(text)
        assert ours.decode(ids, skip_special=False) == text
        assert b"".join(map(ours.token_bytes, ids)).decode() == text

    @settings(max_examples=300, deadline=None)
    @given(ids=st.lists(st.integers(0, 599), max_size=30))
    def test_any_ids(self, ours: Any, oracle: Any, ids: list[int]) -> None:
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)

    @pytest.mark.parametrize("name", BYTE_STRINGS)
    def test_bytes(self, ours: Any, trained: Tokenizer, name: str) -> None:
        alphabet = {ours.token_bytes(id): id for id in range(ours.vocab_size)}
        ids = [alphabet[bytes([byte])] for byte in BYTE_STRINGS[name]]
        assert b"".join(map(ours.token_bytes, ids)) == BYTE_STRINGS[name]
        assert ours.decode(ids) == BYTE_STRINGS[name].decode("utf-8", "replace")

    @pytest.mark.parametrize("name", NOT_UNICODE)
    def test_surrogates_are_refused(self, ours: Any, name: str) -> None:
        with pytest.raises(InvalidRequest, match=r"lone surrogate U\+D[89A-F]") as caught:
            ours.encode(NOT_UNICODE[name], param="input")
        assert caught.value.param == "input"

    def test_ids_that_are_none(self, ours: Any) -> None:
        assert ours.decode([10**6]) == ""
        assert ours.token_bytes(10**6) == b""
        with pytest.raises(InvalidRequest, match="-1 is not between 0 and 599"):
            ours.decode([5, -1])
        with pytest.raises(InvalidRequest):
            ours.decode([2**40])

    def test_special_tokens_can_be_kept_out(self, ours: Any) -> None:
        text = "a<|im_end|>b"
        assert 2 in ours.encode(text)
        plain = ours.encode(text, parse_special=False)
        assert not ours.special_ids.intersection(plain)
        assert ours.decode(plain) == text
        assert ours.encode(text) == [*ours.encode("a"), 2, *ours.encode("b")]

    @settings(max_examples=200, deadline=None)
    @given(text=st.text(alphabet="<|im_endstarofx>é \n", max_size=40))
    def test_nothing_is_smuggled(self, ours: Any, text: str) -> None:
        ids = ours.encode(text, parse_special=False)
        assert not ours.special_ids.intersection(ids)
        assert ours.decode(ids) == text

    def test_roles(self, ours: Any) -> None:
        assert ours.special_tokens == {"eos_token": "<|im_end|>"}
        assert ours.bos_id is None
        assert ours.special_ids == {0, 1, 2}
        assert ours.is_special(1) and not ours.is_special(3)
        assert ours.token_text(2) == "<|im_end|>"
        assert ours.token_bytes(2) == b"<|im_end|>"
        half = ours.encode("😀")[0]
        assert ours.token_text(half).endswith(REPLACEMENT)

    def test_least_tokens(self, ours: Any) -> None:
        for text in TEXTS.values():
            assert ours.least_tokens(text) <= len(ours.encode(text))
        assert ours.least_tokens("x" * 10**6) > 1000


class TestFolderFiles:
    def test_generation_config_wins(self, trained: Tokenizer, tmp_path: Path) -> None:
        save_folder(trained, tmp_path, {"eos_token": {"content": "<|im_end|>"}})
        assert load_tokenizer(tmp_path).eos_ids == [2]
        (tmp_path / "config.json").write_text('{"eos_token_id": 0}')
        assert load_tokenizer(tmp_path).eos_ids == [0, 2]
        (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 0]}')
        assert load_tokenizer(tmp_path).eos_ids == [1, 0]

    def test_end_of_turn_counts_without_any_config(
        self, trained: Tokenizer, tmp_path: Path
    ) -> None:
        assert load_tokenizer(save_folder(trained, tmp_path)).eos_ids == [2]

    def test_special_tokens_map(self, trained: Tokenizer, tmp_path: Path) -> None:
        save_folder(trained, tmp_path)
        (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<|im_start|>"}')
        assert load_tokenizer(tmp_path).bos_id == 1

    @pytest.mark.parametrize("bos", [True, False])
    @pytest.mark.parametrize("eos", [True, False])
    @pytest.mark.parametrize("processor", [True, False])
    def test_ends_are_those_of_tokenizer_json(
        self, tmp_path: Path, bos: bool, eos: bool, processor: bool
    ) -> None:
        trained = train_byte_level()
        if processor:
            trained.post_processor = processors.TemplateProcessing(
                single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
            )
        config: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "add_bos_token": bos,
            "add_eos_token": eos,
        }
        save_folder(trained, tmp_path, config)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        ours = load_tokenizer(tmp_path)
        assert ours.encode("hi") == theirs.encode("hi")
        assert ours.encode("hi", special=False) == theirs.encode("hi", add_special_tokens=False)
        assert (ours.encode("hi")[0] == 1) == processor

    def test_tokens_only_the_config_knows(self, trained: Tokenizer, tmp_path: Path) -> None:
        config: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<pad>",
            "added_tokens_decoder": {"600": {"content": "<think>", "special": False}},
        }
        save_folder(trained, tmp_path, config)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        ours = load_tokenizer(tmp_path)
        text = "a<think>b<pad>c"
        assert ours.encode(text) == theirs.encode(text)
        assert ours.vocab_size == len(theirs) == 602
        assert ours.decode(ours.encode(text)) == "a<think>bc"

    def test_truncation_and_padding_are_off(self, tmp_path: Path) -> None:
        tokenizer = train_byte_level()
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=8)
        ours = load_tokenizer(save_folder(tokenizer, tmp_path))
        assert len(ours.encode("a")) == 1
        assert ours.decode(ours.encode(TEXTS["sentence"])) == TEXTS["sentence"]

    @pytest.mark.parametrize(
        ("file", "text"),
        [
            ("tokenizer.json", "{"),
            ("tokenizer.json", '{"version": "1.0"}'),
            ("tokenizer_config.json", "[1]"),
            ("generation_config.json", "\x00"),
        ],
    )
    def test_broken_files(self, trained: Tokenizer, tmp_path: Path, file: str, text: str) -> None:
        save_folder(trained, tmp_path)
        (tmp_path / file).write_text(text)
        with pytest.raises(ModelFileError, match=file):
            load_tokenizer(tmp_path)

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match=r"no tokenizer\.json"):
            load_tokenizer(tmp_path)

    def test_decoder_that_cannot_stream(self, trained: Tokenizer, tmp_path: Path) -> None:
        odd = Tokenizer.from_str(trained.to_str())
        odd.decoder = decoders.CTC()
        ours = load_tokenizer(save_folder(odd, tmp_path))
        assert ours.encode("hi")
        with pytest.raises(ModelFileError, match="CTC"):
            ours.joiner()


class TestByteLevelGguf:
    @pytest.mark.parametrize(
        ("pre", "original"),
        [
            ("default", {}),
            ("gpt-2", {}),
            ("smollm", {"pre": [pre_tokenizers.Digits(individual_digits=True)]}),
            ("qwen2", {"pre": [split(QWEN_PATTERN)], "nfc": True, "own_pattern": False}),
            (
                "llama-bpe",
                {"pre": [split(LLAMA3_PATTERN)], "own_pattern": False, "ignore_merges": True},
            ),
        ],
    )
    def test_equals_the_original(self, tmp_path: Path, pre: str, original: dict[str, Any]) -> None:
        trained = train_byte_level(**original)
        path = save_gguf(trained, tmp_path / "m.gguf", pre=pre, **ENDS)
        ours = load_tokenizer(path)
        for text in TEXTS.values():
            ids = ours.encode(text, special=False)
            assert ids == trained.encode(text, add_special_tokens=False).ids
            assert ours.decode(ids) == trained.decode(ids)
            assert ours.least_tokens(text) <= len(ids)

    @pytest.mark.parametrize("pre", ["default", "gpt-2"])
    def test_equals_transformers(self, tmp_path: Path, pre: str) -> None:
        save_gguf(train_byte_level(), tmp_path / "m.gguf", pre=pre, **ENDS)
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path, gguf_file="m.gguf")
        ours = load_tokenizer(tmp_path / "m.gguf")
        for text in TEXTS.values():
            assert ours.encode(text) == theirs.encode(text)

    def test_roles(self, tmp_path: Path) -> None:
        ours = load_tokenizer(save_gguf(train_byte_level(), tmp_path / "m.gguf", **ENDS))
        assert ours.special_tokens == {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
        assert ours.eos_ids == [2]
        assert ours.vocab_size == 600

    def test_end_ids(self, tmp_path: Path) -> None:
        keys: dict[str, object] = {"tokenizer.ggml.eot_token_id": 1}
        path = save_gguf(train_byte_level(), tmp_path / "m.gguf", eos="<|endoftext|>", extra=keys)
        assert load_tokenizer(path).eos_ids == [0, 1, 2]

    @pytest.mark.parametrize(
        ("pre", "flag", "expected"),
        [
            ("default", None, []),
            ("default", True, [0]),
            ("llama-bpe", None, [0]),
            ("llama-bpe", False, []),
        ],
    )
    def test_bos(self, tmp_path: Path, pre: str, flag: bool | None, expected: list[int]) -> None:
        extra: dict[str, object] = {} if flag is None else {"tokenizer.ggml.add_bos_token": flag}
        path = save_gguf(train_byte_level(), tmp_path / "m.gguf", pre=pre, extra=extra, **ENDS)
        ours = load_tokenizer(path)
        assert ours.encode("") == expected
        assert ours.encode("", special=False) == []

    def test_user_defined_tokens_stay_whole(self, tmp_path: Path) -> None:
        trained = train_byte_level()
        trained.add_tokens([AddedToken("<think>", normalized=False)])
        trained.add_special_tokens([AddedToken("<｜begin｜>", normalized=False)])
        ours = load_tokenizer(save_gguf(trained, tmp_path / "m.gguf", **ENDS))
        text = "a <think> b<｜begin｜>"
        assert ours.encode(text) == trained.encode(text).ids
        assert ours.decode(ours.encode(text)) == "a <think> b"
        assert ours.vocab_size == 602

    def test_unknown_pre_tokenizer(self, tmp_path: Path) -> None:
        path = save_gguf(train_byte_level(), tmp_path / "m.gguf", pre="klingon-v2")
        with pytest.raises(ModelFileError, match=r"m\.gguf: .*'klingon-v2'.*smollm") as caught:
            load_tokenizer(path)
        assert caught.value.exit_code == 2

    def test_unknown_kind(self, tmp_path: Path) -> None:
        path = save_gguf(train_byte_level(), tmp_path / "m.gguf", kind="rwkv")
        with pytest.raises(ModelFileError, match="kind 'rwkv'"):
            load_tokenizer(path)

    def test_no_tokens(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match=r"tokenizer\.ggml\.tokens"):
            load_tokenizer(save_gguf(Tokenizer.from_str(_EMPTY), tmp_path / "m.gguf"))

    def test_merges_that_make_no_token(self, tmp_path: Path) -> None:
        trained = json.loads(train_byte_level().to_str())
        trained["model"]["merges"].append(["ZZZ", "QQQ"])
        path = tmp_path / "m.gguf"
        with pytest.raises(ModelFileError, match="inconsistent"):
            load_tokenizer(save_gguf(_Stub(trained), path))


class TestSentencePieceGguf:
    @pytest.mark.parametrize("prefix", [True, False])
    def test_equals_the_original(self, tmp_path: Path, prefix: bool) -> None:
        trained = train_sentencepiece(prefix=prefix)
        path = _sentencepiece_gguf(trained, tmp_path, prefix)
        ours = load_tokenizer(path)
        for text in TEXTS.values():
            ids = ours.encode(text)
            assert ids == trained.encode(text).ids, text
            assert ours.decode(ids) == trained.decode(ids)

    def test_equals_transformers(self, tmp_path: Path) -> None:
        _sentencepiece_gguf(train_sentencepiece(), tmp_path, True)
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path, gguf_file="m.gguf")
        ours = load_tokenizer(tmp_path / "m.gguf")
        for text in TEXTS.values():
            ids = ours.encode(text)
            assert ids == theirs.encode(text)
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)

    def test_bos_is_the_default(self, tmp_path: Path) -> None:
        ours = load_tokenizer(_sentencepiece_gguf(train_sentencepiece(), tmp_path, True))
        assert ours.encode("")[0] == ours.bos_id == 1

    def test_least_tokens(self, tmp_path: Path) -> None:
        ours = load_tokenizer(_sentencepiece_gguf(train_sentencepiece(), tmp_path, True))
        for text in TEXTS.values():
            assert ours.least_tokens(text) <= len(ours.encode(text, special=False))
        assert ours.least_tokens("x" * 10**6) > 1000

    def test_bytes(self, tmp_path: Path) -> None:
        trained = train_sentencepiece()
        ours = load_tokenizer(_sentencepiece_gguf(trained, tmp_path, True))
        for raw in BYTE_STRINGS.values():
            ids = [3 + byte for byte in raw]
            assert b"".join(map(ours.token_bytes, ids)) == raw
            assert ours.decode(ids) == trained.decode(ids)
        word = ours.encode("a ", special=False)
        assert b"".join(map(ours.token_bytes, word)) == b" a "


_EMPTY = '{"model": {"type": "BPE", "vocab": {}, "merges": []}}'


class _Stub:
    """Just enough of a tokenizer to be written as a GGUF, however inconsistent."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def to_str(self) -> str:
        return json.dumps(self._config)

    def get_vocab(self) -> dict[str, int]:
        vocab: dict[str, int] = self._config["model"]["vocab"]
        return vocab

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        return {}


def _sentencepiece_gguf(trained: Tokenizer, folder: Path, prefix: bool) -> Path:
    extra: dict[str, object] = {
        "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return save_gguf(
        trained, folder / "m.gguf", kind="llama", pre=None, bos="<s>", eos="</s>", extra=extra
    )
