"""The real models' tokenisers against transformers, on hostile text."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from corpus import BYTE_STRINGS, TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from tenfold.text.model_text import ModelText, load_model_text
from tenfold.text.tokenizer import Tokenizer, load_tokenizer

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def smollm2_text(smollm2_path: Path) -> ModelText:
    return load_model_text(smollm2_path)


@pytest.fixture(scope="module")
def smollm2(smollm2_text: ModelText) -> Tokenizer:
    return smollm2_text.tokenizer


@pytest.fixture(scope="module")
def smollm2_as_transformers_reads_it(smollm2_path: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name
    )


@pytest.fixture(scope="module")
def smollm2_oracle(smollm2_as_transformers_reads_it: Any) -> Any:
    """transformers' tokenizer with the pre-tokenizer of the model's own tokenizer.json.

    transformers 5.23 does not look at ``tokenizer.ggml.pre = smollm`` and uses GPT-2's cut alone.
    SmolLM2's tokenizer.json, and llama.cpp for the same name, first set every digit apart.
    """
    oracle = copy.deepcopy(smollm2_as_transformers_reads_it)
    oracle.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return oracle


@pytest.fixture(scope="module")
def minilm(minilm_path: Path) -> Tokenizer:
    return load_tokenizer(minilm_path)


@pytest.fixture(scope="module")
def minilm_oracle(minilm_path: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(minilm_path)


@pytest.fixture(scope="module")
def gemma3(gemma3_path: Path) -> Tokenizer:
    return load_tokenizer(gemma3_path)


@pytest.fixture(scope="module")
def gemma3_oracle(gemma3_path: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(
        gemma3_path.parent, gguf_file=gemma3_path.name
    )


def assert_same(ours: Tokenizer, oracle: Any, text: str) -> None:
    for special in (True, False):
        ids = ours.encode(text, special=special)
        assert ids == oracle.encode(text, add_special_tokens=special)
        for skip in (True, False):
            assert ours.decode(ids, skip_special=skip) == oracle.decode(
                ids, skip_special_tokens=skip
            )


def assert_same_on_corpus(ours: Tokenizer, oracle: Any) -> None:
    for text in TEXTS.values():
        assert_same(ours, oracle, text)
    assert_same(ours, oracle, "\n".join(TEXTS.values()))


def random_ids(size: int, seed: int) -> Iterator[list[int]]:
    rng = random.Random(seed)
    for length in (1, 2, 3, 5, 8, 40) * 30:
        yield [rng.randrange(size) for _ in range(length)]


def assert_same_roles(ours: Tokenizer, oracle: Any) -> None:
    assert ours.vocab_size == len(oracle)
    assert ours.bos_id == oracle.bos_token_id
    assert ours.special_tokens.items() <= oracle.special_tokens_map.items()
    assert {id for id, t in oracle.added_tokens_decoder.items() if t.special} == ours.special_ids


class TestSmolLM2:
    def test_roles(self, smollm2: Tokenizer, smollm2_oracle: Any) -> None:
        assert_same_roles(smollm2, smollm2_oracle)
        assert smollm2.eos_ids == [2]
        assert smollm2.token_text(2) == "<|im_end|>"

    def test_corpus(self, smollm2: Tokenizer, smollm2_oracle: Any) -> None:
        assert_same_on_corpus(smollm2, smollm2_oracle)

    @settings(max_examples=200, deadline=None)
    @given(text=st.text(max_size=200))
    def test_any_text(self, smollm2: Tokenizer, smollm2_oracle: Any, text: str) -> None:
        assert_same(smollm2, smollm2_oracle, text)

    @settings(max_examples=200, deadline=None)
    @given(text=st.text(alphabet=" \n\t'a1世é😀<|im_end|>.", max_size=60))
    def test_dense_text(self, smollm2: Tokenizer, smollm2_oracle: Any, text: str) -> None:
        assert_same(smollm2, smollm2_oracle, text)

    def test_any_ids(self, smollm2: Tokenizer, smollm2_oracle: Any) -> None:
        for ids in random_ids(smollm2.vocab_size, 1):
            assert smollm2.decode(ids) == smollm2_oracle.decode(ids, skip_special_tokens=True)

    def test_transformers_own_gguf_reading_differs_only_where_digits_follow_blanks(
        self, smollm2: Tokenizer, smollm2_as_transformers_reads_it: Any
    ) -> None:
        """GPT-2's cut leaves the last blank of a run to the digit behind it."""
        differing = [
            text
            for text in TEXTS.values()
            if smollm2.encode(text) != smollm2_as_transformers_reads_it.encode(text)
        ]
        assert len(differing) < 5
        for text in differing:
            pairs = pairwise(text)
            assert any(first.isspace() and second.isnumeric() for first, second in pairs)
        # As trained: a paragraph break is one token, whatever follows.
        assert smollm2.encode("a\n\n2") == [*smollm2.encode("a\n\n"), *smollm2.encode("2")]
        assert len(smollm2_as_transformers_reads_it.encode("a\n\n2")) == 4

    @pytest.mark.parametrize("roles", ["u", "su", "uau"])
    def test_chat(self, smollm2_text: ModelText, smollm2_oracle: Any, roles: str) -> None:
        names = {"s": "system", "u": "user", "a": "assistant"}
        chat = [{"role": names[role], "content": f" Hi {n}\n"} for n, role in enumerate(roles)]
        text = smollm2_text.render("smollm2", chat)
        assert text == smollm2_oracle.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
        ids = smollm2_oracle.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        assert smollm2_text.tokenizer.encode(text, special=False) == ids
        assert smollm2_text.encode_chat("smollm2", chat) == ids


class TestGemma3:
    pytestmark = pytest.mark.slow

    def test_roles(self, gemma3: Tokenizer, gemma3_oracle: Any) -> None:
        assert_same_roles(gemma3, gemma3_oracle)
        assert gemma3.eos_ids == [1, 106]
        assert gemma3.encode("hi")[0] == gemma3.bos_id == 2

    def test_corpus(self, gemma3: Tokenizer, gemma3_oracle: Any) -> None:
        assert_same_on_corpus(gemma3, gemma3_oracle)

    @settings(max_examples=200, deadline=None)
    @given(text=st.text(max_size=200))
    def test_any_text(self, gemma3: Tokenizer, gemma3_oracle: Any, text: str) -> None:
        assert_same(gemma3, gemma3_oracle, text)

    def test_any_ids(self, gemma3: Tokenizer, gemma3_oracle: Any) -> None:
        for ids in random_ids(gemma3.vocab_size, 2):
            assert gemma3.decode(ids) == gemma3_oracle.decode(ids, skip_special_tokens=True)

    def test_byte_tokens(self, gemma3: Tokenizer, gemma3_oracle: Any) -> None:
        first = gemma3.backend.token_to_id("<0x00>")
        around = gemma3.encode(" a", special=False)
        for raw in BYTE_STRINGS.values():
            ids = [*around, *[first + byte for byte in raw], *around]
            assert gemma3.decode(ids) == gemma3_oracle.decode(ids, skip_special_tokens=True)


class TestMiniLM:
    def test_roles(self, minilm: Tokenizer, minilm_oracle: Any) -> None:
        assert_same_roles(minilm, minilm_oracle)
        assert minilm.decode(minilm.encode("hello")) == "hello"

    def test_corpus(self, minilm: Tokenizer, minilm_oracle: Any) -> None:
        assert_same_on_corpus(minilm, minilm_oracle)

    def test_no_truncation_no_padding(self, minilm: Tokenizer) -> None:
        assert len(minilm.encode("word " * 600)) == 602
        assert len(minilm.encode("word")) == 3

    @settings(max_examples=200, deadline=None)
    @given(text=st.text(max_size=200))
    def test_any_text(self, minilm: Tokenizer, minilm_oracle: Any, text: str) -> None:
        assert_same(minilm, minilm_oracle, text)
