"""chat: against a canned server, and its conversation against a scripted talker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from canned import CannedServer
from typer.testing import CliRunner

from tenfold.cli.conversation import Conversation
from tenfold.cli.main import app
from tenfold.cli.talk import Served
from tenfold.core.errors import ModelNotFound, Overloaded
from tenfold.core.types import SamplingParams
from tenfold.fleet.types import ChatPrompt, Delta, TextPrompt

runner = CliRunner()


def chunk(text: str, finish: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CannedServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    models = [
        {"id": "vectors", "kind": "embed", "has_chat_template": False},
        {"id": "m", "kind": "generate", "has_chat_template": True},
        {"id": "base", "kind": "generate", "has_chat_template": False},
    ]
    done = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    made = CannedServer(
        {
            "GET /v1/models": (200, {"data": models}),
            "POST /v1/chat/completions": [chunk("Hel"), chunk("lo", "stop"), done],
            "POST /v1/completions": [
                {"choices": [{"index": 0, "text": " a time", "finish_reason": "length"}]},
                done,
            ],
        }
    )
    monkeypatch.setenv("TENFOLD_URL", made.url)
    yield made
    made.close()


def test_one_question(server: CannedServer) -> None:
    shown = runner.invoke(app, ["chat", "m", "Hi?", "--system", "Be brief.", "--max-tokens", "9"])
    assert (shown.exit_code, shown.stdout) == (0, "Hello\n")
    body = server.asked[-1][3]
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi?"},
    ]
    assert (body["max_tokens"], body["temperature"]) == (9, 0.7)


def test_a_pipe_is_the_prompt_or_follows_it(
    server: CannedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenfold.cli.chat._pipe_has_text", lambda: True)
    runner.invoke(app, ["chat", "m"], input="Tell me.\n")
    assert server.asked[-1][3]["messages"][-1]["content"] == "Tell me."
    runner.invoke(app, ["chat", "m", "Sum up:"], input="long text\n")
    assert server.asked[-1][3]["messages"][-1]["content"] == "Sum up:\n\nlong text"


def test_a_base_model_continues_and_says_so(server: CannedServer) -> None:
    shown = runner.invoke(app, ["chat", "base", "Once upon"])
    assert shown.stdout == " a time\n"
    assert "base model without a chat template" in shown.stderr
    assert server.asked[-1][3]["prompt"] == "Once upon"


def test_a_model_that_is_not_served(server: CannedServer) -> None:
    shown = runner.invoke(app, ["chat", "absent", "Hi?"])
    assert shown.exit_code == 1
    assert "'absent' is no model that generates text here; there are: m, base" in shown.stderr


def test_a_server_that_was_named_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    shown = runner.invoke(app, ["chat", "m", "Hi?", "--url", "http://127.0.0.1:9"])
    assert shown.exit_code == 1
    assert "no server answers" in shown.stderr


class Script:
    """A talker that answers with the number of messages it was given."""

    def __init__(self) -> None:
        self.prompts: list[ChatPrompt | TextPrompt] = []
        self.trouble: BaseException | None = None

    def models(self) -> list[Served]:
        return [Served("m", True), Served("base", False)]

    def stream(
        self, model: str, prompt: ChatPrompt | TextPrompt, sampling: SamplingParams
    ) -> Iterator[Delta]:
        self.prompts.append(prompt)
        yield Delta(0, reasoning="hm")
        yield Delta(0, "half")
        if self.trouble:
            raise self.trouble
        yield Delta(0, " whole")

    def close(self) -> None:
        pass


@pytest.fixture
def script() -> Script:
    return Script()


def converse(script: Script, monkeypatch: pytest.MonkeyPatch, *lines: str) -> Conversation:
    typed = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    conversation = Conversation(script, None, "", SamplingParams())
    conversation.repl()
    return conversation


def test_turns_are_remembered_until_cleared(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converse(
        script, monkeypatch, "one", "/system Be kind.", "two", "/clear", "three", "/exit", "no"
    )
    sizes = [len(prompt.messages) for prompt in script.prompts if isinstance(prompt, ChatPrompt)]
    assert sizes == [1, 4, 2]
    captured = capsys.readouterr()
    assert captured.out == "half whole\n" * 3
    assert "hm" in captured.err


def test_slash_commands(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = converse(script, monkeypatch, "/model", "/model zzz", "/model base", "go", "/?")
    assert (conversation.model, conversation.chats) == ("base", False)
    assert isinstance(script.prompts[0], TextPrompt)
    said = capsys.readouterr().err
    for words in ("m (also served: base)", "'zzz' is no model", "base model", "/clear"):
        assert words in said


def test_errors_and_ctrl_c_do_not_end_a_conversation(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script.trouble = Overloaded("the queue is full")
    conversation = converse(script, monkeypatch, "one")
    assert "Error: the queue is full" in capsys.readouterr().err
    script.trouble = KeyboardInterrupt()
    conversation = converse(script, monkeypatch, "two", "three")
    assert "(stopped)" in capsys.readouterr().err
    assert [turn["content"] for turn in conversation.turns] == ["two", "half", "three", "half"]


def test_an_unknown_model_is_refused_at_once(script: Script) -> None:
    with pytest.raises(ModelNotFound):
        Conversation(script, "zzz", "", SamplingParams())
