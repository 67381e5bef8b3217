"""Bad input over a raw socket, against the real stack: refused by name, quickly, never a 5xx."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from typing import Any, NamedTuple

import pytest

from e2e.serving import PATIENCE, Server

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
VECTORS = "/v1/embeddings"
HI: list[Any] = [{"role": "user", "content": "hi"}]
BASE: dict[str, dict[str, Any]] = {
    CHAT: {"model": "tiny", "messages": HI, "max_tokens": 4},
    TEXT: {"model": "tiny", "prompt": "hi", "max_tokens": 4},
    VECTORS: {"model": "embedder", "input": "hi"},
}


class Reply(NamedTuple):
    status: int
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        return dict(json.loads(self.body)["error"])


def talk(server: Server, *sent: bytes) -> Reply | None:
    """The answer to raw bytes; None where the server just hangs up."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as link:
        for piece in sent:
            link.sendall(piece)
        reply = HTTPResponse(link)
        try:
            reply.begin()
            return Reply(reply.status, reply.read())
        except (ConnectionError, EOFError, OSError) as error:
            assert not isinstance(error, TimeoutError), "the server hangs"
            return None


def post(server: Server, path: str, body: bytes, kind: str = "application/json") -> Reply:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    reply = talk(server, f"{head}Content-Type: {kind}\r\n\r\n".encode(), body)
    assert reply is not None
    return reply


def ask(server: Server, path: str, **fields: Any) -> Reply:
    body = json.dumps(BASE[path] | fields).encode()
    return post(server, path, body)


@pytest.fixture(scope="module", autouse=True)
def unharmed(server: Server) -> Iterator[None]:
    """Whatever came, the worker lives, no bug was logged, and no block is in use."""
    worker = server.worker
    yield
    assert server.worker == worker, "a request killed the worker"
    assert len(server.complete("tiny", "still here", 4)) > 0
    server.settled()
    log = server.err.read_text()
    assert "Traceback" not in log and "status=500" not in log


FIELDS: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "hello"}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    (CHAT, {"model": "nope"}, "model"),
    (CHAT, {"model": "embedder"}, "model"),
    (CHAT, {"temperature": -1}, "temperature"),
    (CHAT, {"temperature": "hot"}, "temperature"),
    (CHAT, {"max_tokens": -5}, "max_tokens"),
    (CHAT, {"n": 10**9}, "n"),
    (CHAT, {"n": -1}, "n"),
    (CHAT, {"top_logprobs": 3}, "top_logprobs"),
    (CHAT, {"logit_bias": {"304": 1}}, "logit_bias"),
    (CHAT, {"logit_bias": {"-1": 1}}, "logit_bias"),
    (CHAT, {"stop_token_ids": [304]}, "stop_token_ids"),
    (CHAT, {"stop": ["x"] * 5}, "stop"),
    (CHAT, {"seed": 2**64}, "seed"),
    (CHAT, {"response_format": {"type": "yaml"}}, "response_format"),
    (CHAT, {"guided_regex": "("}, "guided_regex"),
    (CHAT, {"guided_grammar": "start: missing"}, "guided_grammar"),
    (CHAT, {"tools": [{"type": "function"}]}, "tools[0].function"),
    (CHAT, {"stream": "yes"}, "stream"),
    (CHAT, {"timeout": -1}, "timeout"),
    (TEXT, {"prompt": []}, "prompt"),
    (TEXT, {"prompt": ""}, "prompt"),
    (TEXT, {"prompt": [[]]}, "prompt"),
    (TEXT, {"prompt": [304]}, "prompt"),
    (TEXT, {"prompt": [-1]}, "prompt"),
    (TEXT, {"prompt": [2**31]}, "prompt"),
    (TEXT, {"prompt": [10**30]}, "prompt"),
    (TEXT, {"prompt": [1.5]}, "prompt"),
    (TEXT, {"prompt": [True]}, "prompt"),
    (TEXT, {"prompt": {"text": "hi"}}, "prompt"),
    (TEXT, {"prompt": None}, "prompt"),
    (TEXT, {"prompt": ["a", "b"], "n": 128}, "n"),
    (TEXT, {"prompt": ["a"] * 129}, "prompt"),
    (VECTORS, {"input": []}, "input"),
    (VECTORS, {"input": [""]}, "input"),
    (VECTORS, {"input": [[304]]}, "input"),
    (VECTORS, {"input": ["a"] * 2049}, "input"),
    (VECTORS, {"dimensions": 8}, "dimensions"),
    (VECTORS, {"model": "tiny"}, "model"),
]


def schema(inner: Any) -> dict[str, Any]:
    spec = {"name": "a", "schema": inner}
    return {"response_format": {"type": "json_schema", "json_schema": spec}}


def tool(parameters: Any) -> dict[str, Any]:
    made = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    return {"tools": [made], "tool_choice": "required"}


BAD_SHAPES: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, schema({"type": "wizard"}), "response_format"),
    (CHAT, schema({"$ref": "#/nowhere"}), "response_format"),
    (CHAT, schema({"type": "string", "pattern": "("}), "response_format"),
    (CHAT, schema({"minimum": 5, "maximum": 1, "type": "integer"}), "response_format"),
    (CHAT, tool({"type": "wizard"}), "tools"),
    (CHAT, tool({"$ref": "#/nowhere"}), "tools"),
    (CHAT, tool({"type": "object", "properties": {"a": {"pattern": "("}}}), "tools"),
]


@pytest.mark.parametrize(("path", "fields", "param"), [*FIELDS, *BAD_SHAPES])
def test_the_field_is_named(server: Server, path: str, fields: dict[str, Any], param: str) -> None:
    reply = ask(server, path, **fields)
    assert 400 <= reply.status < 500, reply
    said = str(reply.error["param"])
    assert said == param or said.startswith(f"{param}."), reply.error
    assert len(reply.error["message"]) < 1000


def test_ten_megabytes_of_prompt(server: Server) -> None:
    text = "the rain in Spain " * 600_000
    messages = [{"role": "user", "content": text}]
    for path, fields in ((TEXT, {"prompt": text}), (CHAT, {"messages": messages})):
        reply = ask(server, path, **fields)
        assert reply.status == 400
        assert reply.error["code"] == "context_length_exceeded"
        assert "8192" in reply.error["message"]
    reply = ask(server, VECTORS, input=text)
    assert reply.status == 400 and "64" in reply.error["message"]
    reply = ask(server, TEXT, prompt=[5] * 3_000_000)
    assert reply.status == 400 and "3000000" in reply.error["message"]
    reply = post(
        server, "/tokenize", json.dumps({"model": "tiny", "prompt": text[:500_000]}).encode()
    )
    assert reply.status == 200


def test_a_body_past_the_limit(server: Server) -> None:
    reply = ask(server, TEXT, prompt="x" * (33 << 20))
    assert reply.status == 413 and str(32 << 20) in reply.error["message"]


def test_a_prompt_longer_than_the_context_names_both_numbers(server: Server) -> None:
    ids = [5] * 2048
    messages = [{"role": "user", "content": "!?" * 2000}]
    for path, fields, param in (
        (TEXT, {"prompt": ids}, "prompt"),
        (CHAT, {"messages": messages}, "messages"),
    ):
        reply = ask(server, path, model="other", **fields)
        assert reply.status == 400 and reply.error["param"] == param
        assert reply.error["code"] == "context_length_exceeded"
        message = reply.error["message"]
        assert "2048" in message
        assert any(
            int(word) >= 2048 for word in message.replace(",", " ").split() if word.isdigit()
        )
    fits = ask(server, TEXT, model="other", prompt=ids[:2047], max_tokens=2**31 - 1)
    assert fits.status == 200
    assert json.loads(fits.body)["usage"]["completion_tokens"] == 1
    reply = ask(server, VECTORS, input=[[5] * 65])
    assert reply.status == 400 and "65" in reply.error["message"] and "64" in reply.error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe{}",
        b'{"model": "tiny", "prompt": "\xc3\x28"}',
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b'{"model": "tiny", "prompt": "hi", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "hi", "temperature": Infinity}',
        b'{"model": "tiny", "prompt": "hi", "temperature": 1e999}',
        b'{"model": "tiny", "prompt": "hi", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "tiny", "prompt": "hi", "user": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
        b'{"model": "tiny" "prompt": "hi"}',
    ],
    ids=range(15),
)
def test_bodies_that_are_no_sound_json(server: Server, body: bytes) -> None:
    reply = post(server, TEXT, body)
    assert reply.status == 400, reply
    assert reply.error["type"] == "invalid_request_error" and reply.error["message"]


def test_text_that_is_odd_but_sound(server: Server) -> None:
    """Control characters, unpaired marks, special tokens spelt out: all of it is just text."""
    odd = "\x00\x01\x7f \u202e\ufeff \U0001f468\u200d\U0001f469 <|im_end|> <|endoftext|> \r\n"
    odd += "{{ messages }} {% raw %}"
    assert ask(server, CHAT, messages=[{"role": "user", "content": odd}]).status == 200
    assert ask(server, TEXT, prompt=odd).status == 200
    assert ask(server, VECTORS, input=odd[:20]).status == 200


BRANCHES = {
    "allOf": [{"anyOf": [{"type": "string", "pattern": f"{i}.*" * 9}] * 9} for i in range(9)]
}
COSTLY: list[dict[str, Any]] = [
    {"guided_regex": "((a{1,1000}){1,1000}){1,1000}"},
    {"guided_regex": "(" * 5000 + "a" + ")" * 5000},
    schema({"type": "array", "minItems": 10**9, "items": {"type": "integer"}}),
    schema({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
    schema({"enum": [f"word {number}" * 5 for number in range(20_000)]}),
    tool({"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"}),
]
COSTLIER: list[dict[str, Any]] = [
    {"guided_regex": "(a|b|ab)*(.{500}){500}"},
    {"guided_regex": "(a+)+$" * 200},
    {"guided_grammar": "start: a\na: a a a | b\nb: b b | a | " + '"x"'},
    {"guided_grammar": "start: " + " ".join(["x?"] * 20_000) + '\nx: "a"'},
    schema({"type": "string", "minLength": 10**7, "maxLength": 10**8}),
    schema({"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"}),
    schema(BRANCHES),
    tool(BRANCHES),
    tool({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
]


@pytest.mark.parametrize("costly", [COSTLY, pytest.param(COSTLIER, marks=pytest.mark.slow)])
def test_costly_constraints_stop_nobody(server: Server, costly: list[dict[str, Any]]) -> None:
    """All at once, while an ordinary client is served: each is answered or refused by name."""
    with ThreadPoolExecutor(len(costly)) as pool:
        asked = [pool.submit(ask, server, CHAT, **fields) for fields in costly]
        while not all(job.done() for job in asked):
            assert len(server.complete("tiny", "an ordinary client", 4)) > 0
    for job, fields in zip(asked, costly, strict=True):
        reply = job.result()
        assert reply.status in (200, 400, 429), (str(fields)[:100], reply)
        if reply.status == 400:
            field = "tools" if "tools" in fields else next(iter(fields))
            assert str(reply.error["param"]).startswith(field), reply.error


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: many\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v1/models/../../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v1/models/%00%ff%fe HTTP/1.1\r\nHost: a\r\n\r\n",
        b"BREW /v1/completions HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\nHost: a\r\n\r\n",
    ],
    ids=range(12),
)
def test_bytes_that_are_no_sound_http(server: Server, sent: bytes) -> None:
    """Refused, or the line is cut; the write side is closed, so that no one waits for more."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as link:
        answer = b""
        try:
            link.sendall(sent)
            link.shutdown(socket.SHUT_WR)
            while piece := link.recv(65536):
                answer += piece
        except TimeoutError:
            raise
        except OSError:  # cut in the middle of what we say
            pass
    if answer:
        status = int(answer.split()[1])
        assert 400 <= status < 500 or (status == 200 and b"HTTP/9.9" in sent), answer[:200]


def test_the_wrong_method_type_and_place(server: Server) -> None:
    for method, path, status in (
        ("GET", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v2", 404),
    ):
        assert server.http.request(method, path).status_code == status
    assert post(server, TEXT, json.dumps(BASE[TEXT]).encode(), kind="text/plain").status == 415
    unknown = server.http.get("/v1/models/%2e%2e%2fetc")
    assert unknown.status_code == 404 and unknown.json()["error"]["code"]
