"""Chat templates against transformers' ``apply_chat_template``, and against bad input."""

from __future__ import annotations

import copy
import json
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import chat_templates
import pytest
from corpus import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import train_byte_level

from tenfold.core.errors import InvalidRequest, ModelFileError
from tenfold.text.sandbox_env import MAX_CHARS, TemplateTooLarge, environment
from tenfold.text.template import ChatTemplate, folder_template, gguf_template, missing_template

transformers = pytest.importorskip("transformers")

ROLES = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": 'Says "hi" & <b>größe</b>',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for name in ("weather", "time")
]


def call(name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": "abc123def", "type": "function", "function": function}


USER = {"role": "user", "content": " Hello <there> 世界\n"}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "system": [{"role": "system", "content": "Be brief. "}, USER],
    "turns": [USER, {"role": "assistant", "content": "Hi! "}, {"role": "user", "content": "And?"}],
    "thought": [
        USER,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi!"},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "Yes.", "reasoning": "so"},
    ],
    "tools": [
        {"role": "system", "content": "Use tools."},
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call("weather", city="Ulm", n=[1, 2])]},
        {"role": "tool", "content": "22.0", "tool_call_id": "abc123def"},
        {"role": "assistant", "content": "22 degrees."},
        USER,
    ],
    "two calls": [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call("weather"), call("time")]},
        {"role": "tool", "content": "a", "tool_call_id": "x"},
        {"role": "tool", "content": "b", "tool_call_id": "y"},
    ],
    "empty text": [{"role": "user", "content": ""}],
}


@pytest.fixture(scope="module")
def oracle() -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=train_byte_level(), **ROLES)


def theirs(oracle: Any, source: str, chat: list[dict[str, Any]], **kwargs: Any) -> str | None:
    """What transformers renders, or None where it refuses."""
    try:
        text: str = oracle.apply_chat_template(chat, chat_template=source, tokenize=False, **kwargs)
    except Exception:
        return None
    return text


def ours(template: ChatTemplate, chat: list[dict[str, Any]], **kwargs: Any) -> str | None:
    try:
        return template.render(chat, **kwargs)
    except InvalidRequest as exc:
        assert exc.param is not None and exc.param.startswith("messages")
        return None


@pytest.mark.parametrize("family", chat_templates.ALL)
class TestEqualsTransformers:
    @pytest.mark.parametrize("chat", CHATS)
    @pytest.mark.parametrize("tools", [None, TOOLS])
    @pytest.mark.parametrize("prompt", [True, False])
    def test_render(self, oracle: Any, family: str, chat: str, tools: Any, prompt: bool) -> None:
        source = chat_templates.ALL[family]
        template = ChatTemplate(source, ROLES)
        messages = copy.deepcopy(CHATS[chat])
        expected = theirs(oracle, source, CHATS[chat], tools=tools, add_generation_prompt=prompt)
        found = ours(template, messages, tools=tools, add_generation_prompt=prompt)
        assert found == expected or (expected is None and "tool_calls" in str(messages))
        assert messages == CHATS[chat]

    @pytest.mark.parametrize("ending", ["", " ", "So far,  ", "two\n\n"])
    def test_continue(self, oracle: Any, family: str, ending: str) -> None:
        source = chat_templates.ALL[family]
        chat = [USER, {"role": "assistant", "content": "Well. " + ending}]
        expected = theirs(oracle, source, chat, continue_final_message=True)
        assert ours(ChatTemplate(source, ROLES), chat, continue_final=True) == expected
        assert expected is not None and "<|im_end|>" not in expected[-12:]

    @settings(max_examples=60, deadline=None)
    @given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=4))
    def test_any_text(self, oracle: Any, family: str, texts: list[str]) -> None:
        source = chat_templates.ALL[family]
        roles = ["user", "assistant"]
        chat = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
        assert ours(ChatTemplate(source, ROLES), chat) == theirs(
            oracle, source, chat, add_generation_prompt=True
        )

    def test_corpus(self, oracle: Any, family: str) -> None:
        source = chat_templates.ALL[family]
        template = ChatTemplate(source, ROLES)
        for text in TEXTS.values():
            chat = [{"role": "system", "content": text}, {"role": "user", "content": text}]
            assert ours(template, chat) == theirs(oracle, source, chat, add_generation_prompt=True)


class TestOwnArguments:
    def test_template_keywords(self, oracle: Any) -> None:
        template = ChatTemplate(chat_templates.QWEN, ROLES)
        text = template.render([USER], enable_thinking=False)
        assert text.endswith("<think>\n\n</think>\n\n")
        assert text == theirs(
            oracle,
            chat_templates.QWEN,
            [USER],
            add_generation_prompt=True,
            enable_thinking=False,
        )

    @pytest.mark.parametrize("name", ["messages", "documents"])
    def test_reserved_keywords(self, name: str) -> None:
        with pytest.raises(InvalidRequest, match=name) as caught:
            ChatTemplate(chat_templates.CHATML).render([USER], **{name: []})
        assert caught.value.param == "chat_template_kwargs"

    def test_the_date_is_the_clocks(self) -> None:
        template = ChatTemplate(chat_templates.LLAMA3, ROLES, now=lambda: datetime(1999, 1, 2))
        assert "Year: 1999" in template.render([USER])

    def test_takes_tools(self) -> None:
        assert ChatTemplate(chat_templates.QWEN).takes_tools
        assert not ChatTemplate(chat_templates.CHATML).takes_tools


class TestParts:
    PARTS = ({"type": "text", "text": "one"}, {"type": "text", "text": "two"})

    def test_text_templates_get_text(self) -> None:
        template = ChatTemplate(chat_templates.CHATML)
        found = template.render([{"role": "user", "content": list(self.PARTS)}])
        assert found == template.render([{"role": "user", "content": "one\ntwo"}])

    @pytest.mark.parametrize("source", [chat_templates.GEMMA, chat_templates.PARTS_ONLY])
    def test_templates_that_take_parts_get_parts(self, oracle: Any, source: str) -> None:
        chat = [{"role": "user", "content": list(self.PARTS)}]
        template = ChatTemplate(source, ROLES)
        assert "onetwo" in template.render(chat)
        assert template.render(chat) == theirs(oracle, source, chat, add_generation_prompt=True)

    def test_a_template_that_takes_only_parts_gets_text_as_parts(self) -> None:
        template = ChatTemplate(chat_templates.PARTS_ONLY)
        assert template.render([{"role": "user", "content": "hello"}]) == template.render(
            [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
        )
        assert "hello" in template.render([USER, {"role": "assistant", "content": "hello"}])

    def test_continue_within_parts(self) -> None:
        chat = [USER, {"role": "assistant", "content": list(self.PARTS)}]
        text = ChatTemplate(chat_templates.GEMMA, ROLES).render(chat, continue_final=True)
        assert text.endswith("<start_of_turn>model\nonetwo")

    @pytest.mark.parametrize(
        ("part", "message"),
        [
            ({"type": "image_url", "image_url": {"url": "x"}}, "'image_url'"),
            ({"type": "text"}, "'text'"),
            ({"type": "text", "text": 5}, "'text'"),
            ({}, "None"),
            ("text", "None"),
            (None, "None"),
        ],
    )
    def test_other_parts_are_refused(self, part: Any, message: str) -> None:
        chat = [USER, {"role": "user", "content": [self.PARTS[0], part]}]
        with pytest.raises(InvalidRequest, match=message) as caught:
            ChatTemplate(chat_templates.CHATML).render(chat)
        assert caught.value.param == "messages[1].content[1]"


class TestToolCalls:
    def test_arguments_as_json_text(self) -> None:
        template = ChatTemplate(chat_templates.QWEN)
        as_object = copy.deepcopy(CHATS["tools"])
        as_text = copy.deepcopy(as_object)
        function = as_text[2]["tool_calls"][0]["function"]
        function["arguments"] = json.dumps(function["arguments"])
        assert template.render(as_text) == template.render(as_object)

    def test_templates_that_want_text_get_text(self) -> None:
        found = ChatTemplate(chat_templates.TEXT_ARGUMENTS).render(CHATS["two calls"][:2])
        assert "weather{}" in found
        assert "assistant: " in found

    @pytest.mark.parametrize(
        ("calls", "param"),
        [
            ([{"function": {"name": "f", "arguments": "{"}}], "tool_calls[0].function.arguments"),
            (
                [{"function": {"name": "f", "arguments": "[" * 10**5}}],
                "tool_calls[0].function.arguments",
            ),
            ([call("f"), "f"], "tool_calls[1]"),
            ([{"function": None}], "tool_calls[0]"),
            (5, "tool_calls"),
            ({"function": {}}, "tool_calls"),
        ],
    )
    def test_broken_calls(self, calls: Any, param: str) -> None:
        chat = [USER, {"role": "assistant", "content": "", "tool_calls": calls}]
        with pytest.raises(InvalidRequest) as caught:
            ChatTemplate(chat_templates.QWEN).render(chat)
        assert caught.value.param == f"messages[1].{param}"


class TestBadInput:
    @pytest.mark.parametrize(
        ("chat", "message"),
        [
            ([], "empty"),
            (["hi"], r"messages\[0\]"),
            ([{"content": "x"}], r"messages\[0\]"),
            ([{"role": 5, "content": "x"}], r"messages\[0\]"),
            ([{"role": "user"}], "cannot render"),
            ([{"role": "user", "content": 5}], r"messages\[0\]\.content"),
            ([{"role": "user", "content": {"a": 1}}], r"messages\[0\]\.content"),
        ],
    )
    def test_messages(self, chat: Any, message: str) -> None:
        with pytest.raises(InvalidRequest, match=message):
            ChatTemplate(chat_templates.CHATML).render(chat)

    def test_what_a_template_refuses(self) -> None:
        with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
            ChatTemplate(chat_templates.GEMMA, ROLES).render([USER, USER])
        assert caught.value.param == "messages"
        assert caught.value.status == 400

    @pytest.mark.parametrize("source", ["{{ messages[0].a.b }}", "{{ 1 / 0 }}", "{{ 'x' + 1 }}"])
    def test_what_a_template_cannot_do(self, source: str) -> None:
        with pytest.raises(InvalidRequest, match="cannot render"):
            ChatTemplate(source).render([USER])

    @pytest.mark.parametrize("content", [None, []])
    def test_nothing_to_continue(self, content: Any) -> None:
        chat = [USER, {"role": "assistant", "content": content}]
        with pytest.raises(InvalidRequest, match="continue"):
            ChatTemplate(chat_templates.PARTS_ONLY).render(chat, continue_final=True)

    def test_a_template_that_drops_the_last_message(self) -> None:
        with pytest.raises(InvalidRequest, match="cannot be continued"):
            ChatTemplate("nothing").render([USER], continue_final=True)

    @pytest.mark.parametrize(
        "source", ["{% for %}", "{{", "{% endif %}", "{% for a in b %}" * 60, "(" * 10 + "{{ (}}"]
    )
    def test_broken_templates(self, source: str) -> None:
        with pytest.raises(ModelFileError, match="not valid Jinja"):
            ChatTemplate(source)


class TestSandbox:
    @pytest.mark.parametrize(
        "source",
        [
            "{{ ''.__class__.__mro__ }}",
            "{{ messages.append(1) }}",
            "{{ messages[0].update(a=1) }}",
            "{{ cycler.__init__.__globals__ }}",
            "{{ raise_exception.__globals__ }}",
            "{% include 'x' %}",
            "{{ self._TemplateReference__context }}",
        ],
    )
    def test_no_way_out(self, source: str) -> None:
        chat = [dict(USER)]
        try:
            found = ChatTemplate(source).render(chat)
        except InvalidRequest:
            found = ""
        assert "class" not in found and "module" not in found
        assert chat == [USER]

    @pytest.mark.parametrize(
        "source",
        [
            "{{ 'x' * 10**9 }}",
            "{{ [0] * 2000000000 }}",
            "{{ 9 ** 9 ** 9 }}",
            "{% set ns = namespace(s='x') %}"
            "{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
            "{% set ns = namespace(s='x') %}"
            "{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
            "{% for i in range(100000) %}{{ 'x' * 10000 }}{% endfor %}",
            "{% for i in range(10**9) %}x{% endfor %}",
        ],
    )
    def test_bombs(self, source: str) -> None:
        with pytest.raises(InvalidRequest, match=r"too large|more than|too big"):
            ChatTemplate(source).render([USER])

    def test_the_cap_is_on_what_comes_out(self) -> None:
        env = environment(datetime.now, max_chars=10)
        fits = env.compile_source("{{ 'x' * 5 }}{{ 'y' ~ 'zz' }}")
        assert env.render(fits, {}) == "xxxxxyzz"
        with pytest.raises(TemplateTooLarge):
            env.render(env.compile_source("{{ 'x' * 5 }}{{ 'y' * 6 }}"), {})
        assert MAX_CHARS > 10**7

    def test_threads_share_a_template(self) -> None:
        template = ChatTemplate(chat_templates.QWEN, ROLES)
        wrong: list[str] = []

        def work(name: str) -> None:
            for n in range(50):
                text = template.render([{"role": "user", "content": f"{name} {n}"}])
                if f"{name} {n}<|im_end|>" not in text:
                    wrong.append(text)

        threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


class TestSources:
    def test_jinja_file_wins(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "config"}')
        found = folder_template(tmp_path, {})
        assert found is not None and found.render([USER]) == "config"
        (tmp_path / "chat_template.jinja").write_text("file")
        found = folder_template(tmp_path, {})
        assert found is not None and found.render([USER]) == "file"

    def test_named_templates(self, tmp_path: Path) -> None:
        named = [
            {"name": "default", "template": "plain"},
            {"name": "tool_use", "template": "{{ tools|length }} tools"},
        ]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
        found = folder_template(tmp_path, {})
        assert found is not None and found.takes_tools
        assert found.render([USER]) == "plain"
        assert found.render([USER], tools=TOOLS) == "2 tools"

    def test_none(self, tmp_path: Path) -> None:
        assert folder_template(tmp_path, {}) is None
        assert gguf_template({}, {}) is None

    def test_gguf(self) -> None:
        metadata = {
            "tokenizer.chat_template": "plain {{ bos_token }}",
            "tokenizer.chat_template.tool_use": "tools",
        }
        found = gguf_template(metadata, ROLES)
        assert found is not None and found.render([USER]) == "plain <|endoftext|>"
        assert found.render([USER], tools=TOOLS) == "tools"

    def test_missing(self) -> None:
        error = missing_template("gemma3-270m")
        assert error.message.startswith("gemma3-270m is a base model without a chat template")
        assert "/v1/completions" in error.message
