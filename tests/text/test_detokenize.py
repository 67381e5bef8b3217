"""Text in parts equals text at once, however the tokens are cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from corpus import BYTE_STRINGS, TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import save_folder, save_gguf, train_byte_level, train_sentencepiece
from tokenizers import Tokenizer as Backend
from tokenizers import decoders

from tenfold.text.detokenize import IncrementalDetokenizer
from tenfold.text.joining import REPLACEMENT
from tenfold.text.tokenizer import Tokenizer, load_tokenizer

KINDS = ["byte level", "fallback with prefix", "fallback", "metaspace", "word pieces", "no decoder"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("made")
    with_prefix = train_sentencepiece()

    def redecoded(name: str, decoder: decoders.Decoder | None) -> Path:
        config = json.loads(with_prefix.to_str())
        backend = Backend.from_str(json.dumps({**config, "decoder": None}))
        if decoder is not None:
            backend.decoder = decoder
        return save_folder(backend, root / name)

    paths = [
        save_folder(train_byte_level(), root / "byte level"),
        save_folder(with_prefix, root / "prefix"),
        save_gguf(
            train_sentencepiece(prefix=False),
            root / "fallback.gguf",
            kind="llama",
            pre=None,
            bos="<s>",
            extra={"tokenizer.ggml.add_space_prefix": False},
        ),
        redecoded("metaspace", decoders.Metaspace()),
        redecoded("word pieces", decoders.WordPiece()),
        redecoded("plain", None),
    ]
    return dict(zip(KINDS, map(load_tokenizer, paths), strict=True))


def streamed(
    tokenizer: Tokenizer, ids: list[int], sizes: list[int], *, skip_special: bool = True
) -> str:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special=skip_special)
    parts, at = [], 0
    for size in sizes:
        parts.append(detokenizer.push(ids[at : at + size]))
        at += size
    parts.append(detokenizer.push(ids[at:]))
    return "".join(parts) + detokenizer.flush()


sizes = st.lists(st.integers(0, 4), max_size=20)


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    @settings(max_examples=150, deadline=None)
    @given(data=st.data(), sizes=sizes, skip=st.booleans())
    def test_any_ids(
        self,
        made: dict[str, Tokenizer],
        kind: str,
        data: st.DataObject,
        sizes: list[int],
        skip: bool,
    ) -> None:
        tokenizer = made[kind]
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=40))
        expected = tokenizer.decode(ids, skip_special=skip)
        assert streamed(tokenizer, ids, sizes, skip_special=skip) == expected

    @settings(max_examples=100, deadline=None)
    @given(text=st.text(max_size=40), sizes=sizes)
    def test_any_text(
        self, made: dict[str, Tokenizer], kind: str, text: str, sizes: list[int]
    ) -> None:
        ids = made[kind].encode(text)
        assert streamed(made[kind], ids, sizes) == made[kind].decode(ids)

    def test_corpus_one_by_one(self, made: dict[str, Tokenizer], kind: str) -> None:
        for text in TEXTS.values():
            ids = made[kind].encode(text)
            assert streamed(made[kind], ids, [1] * len(ids)) == made[kind].decode(ids)

    @settings(max_examples=100, deadline=None)
    @given(data=st.data())
    def test_after_a_prompt(
        self, made: dict[str, Tokenizer], kind: str, data: st.DataObject
    ) -> None:
        """What a prompt's end and the tokens say together, less what the prompt had settled."""
        tokenizer = made[kind]
        ids = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12)
        prompt, made_ids = data.draw(ids), data.draw(ids)
        settled = IncrementalDetokenizer(tokenizer).push(prompt)
        detokenizer = IncrementalDetokenizer(tokenizer, prompt)
        text = settled + detokenizer.push(made_ids) + detokenizer.flush()
        assert text == tokenizer.decode(prompt + made_ids)


def byte_ids(tokenizer: Tokenizer, raw: bytes) -> list[int]:
    single = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocab_size - 1, -1, -1)}
    first = tokenizer.backend.token_to_id("<0x00>")
    return [single[bytes([b])] if first is None else first + b for b in raw]


class TestBytes:
    @pytest.mark.parametrize("kind", ["byte level", "fallback"])
    @pytest.mark.parametrize("name", BYTE_STRINGS)
    def test_byte_strings(self, made: dict[str, Tokenizer], kind: str, name: str) -> None:
        ids = byte_ids(made[kind], BYTE_STRINGS[name])
        assert streamed(made[kind], ids, [1] * len(ids)) == made[kind].decode(ids)

    @settings(max_examples=300, deadline=None)
    @given(
        raw=st.binary(max_size=30), sizes=sizes, kind=st.sampled_from(["byte level", "fallback"])
    )
    def test_any_bytes(
        self, made: dict[str, Tokenizer], kind: str, raw: bytes, sizes: list[int]
    ) -> None:
        ids = byte_ids(made[kind], raw)
        assert streamed(made[kind], ids, sizes) == made[kind].decode(ids)

    @pytest.mark.parametrize("kind", ["byte level", "fallback"])
    def test_no_replacement_before_its_time(self, made: dict[str, Tokenizer], kind: str) -> None:
        tokenizer = made[kind]
        detokenizer = IncrementalDetokenizer(tokenizer)
        parts = [detokenizer.push([id]) for id in byte_ids(tokenizer, "é😀世".encode())]
        assert REPLACEMENT not in "".join(parts)
        assert "".join(parts) + detokenizer.flush() == "é😀世"

    def test_a_character_comes_with_its_last_byte(self, made: dict[str, Tokenizer]) -> None:
        detokenizer = IncrementalDetokenizer(made["byte level"])
        parts = [detokenizer.push([id]) for id in byte_ids(made["byte level"], "😀é".encode())]
        assert parts == ["", "", "", "😀", "", "é"]

    def test_a_run_of_byte_tokens_comes_with_the_token_behind(
        self, made: dict[str, Tokenizer]
    ) -> None:
        """An invalid byte spoils the whole run in ``decode``, so all of it waits."""
        tokenizer = made["fallback"]
        word = tokenizer.encode("a", special=False)
        detokenizer = IncrementalDetokenizer(tokenizer)
        assert detokenizer.push(byte_ids(tokenizer, "é".encode())) == ""
        assert detokenizer.push(word) == "éa"
        assert detokenizer.push(byte_ids(tokenizer, "é".encode() + b"\xff")) == ""
        assert detokenizer.push(word) == REPLACEMENT * 3 + "a"

    def test_incomplete_at_the_end(self, made: dict[str, Tokenizer]) -> None:
        detokenizer = IncrementalDetokenizer(made["byte level"])
        assert detokenizer.push(byte_ids(made["byte level"], b"a\xf0\x9f")) == "a"
        assert detokenizer.flush() == REPLACEMENT


class TestSpaces:
    def test_prefix_space_goes_only_at_the_start(self, made: dict[str, Tokenizer]) -> None:
        tokenizer = made["fallback with prefix"]
        ids = tokenizer.encode("one two", special=False)
        assert streamed(tokenizer, ids, [1] * len(ids)) == "one two"
        prompt = tokenizer.encode("zero")
        after = IncrementalDetokenizer(tokenizer, prompt)
        assert after.push(ids) + after.flush() == " one two"

    def test_bos_alone_is_the_start(self, made: dict[str, Tokenizer]) -> None:
        tokenizer = made["fallback with prefix"]
        detokenizer = IncrementalDetokenizer(tokenizer, tokenizer.encode("", special=True)[:1])
        assert detokenizer.push(tokenizer.encode("hi", special=False)) == "hi"

    def test_prompt_ending_inside_a_character(self, made: dict[str, Tokenizer]) -> None:
        ids = byte_ids(made["byte level"], "a😀b".encode())
        detokenizer = IncrementalDetokenizer(made["byte level"], ids[:3])
        assert detokenizer.push(ids[3:]) == "😀b"


@pytest.mark.parametrize("name", ["smollm2", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_real_models(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(f"{name}_path"))
    for text in TEXTS.values():
        ids = tokenizer.encode(text)
        for size in (1, 3):
            assert streamed(tokenizer, ids, [size] * len(ids)) == tokenizer.decode(ids)
