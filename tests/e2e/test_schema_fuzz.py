"""schemathesis against a running server and its real models: no 5xx, and answers as documented."""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from e2e.serving import PATIENCE, Server

QUIET = [HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large]
WORKING = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
]


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with models that are served, and with short answers.

    Otherwise nearly every example would end at "no such model", and the rest would take long.
    """
    made: dict[str, Any] = json.loads(json.dumps(document))
    for schema in made["components"]["schemas"].values():
        properties = schema.get("properties", {})
        if "max_tokens" in properties:
            properties |= {"max_tokens": {"enum": [1, 3]}, "n": {"enum": [1, 2, None]}}
            properties["timeout"] = {"enum": [60, None]}  # less would rightly end in a 504
            properties.pop("max_completion_tokens", None)
            schema["required"] = [*schema.get("required", ()), "max_tokens"]
        if "messages" in properties or "prompt" in properties:
            properties["model"] = {"enum": ["tiny", "other", "nope"]}
        elif "input" in properties:
            properties |= {"model": {"enum": ["embedder"]}, "dimensions": {"enum": [64, None]}}
        elif "arguments" in properties:
            properties["arguments"] = {"enum": ["", "{}", '{"a": 1}']}
        if "messages" in properties:
            # Two roles share a schema, which the fuzzer takes for a contradiction.
            properties["messages"] = without_discriminators(properties["messages"])
    return made


def without_discriminators(schema: Any) -> Any:
    if isinstance(schema, dict):
        kept = {key: value for key, value in schema.items() if key != "discriminator"}
        return {key: without_discriminators(value) for key, value in kept.items()}
    return [without_discriminators(item) for item in schema] if isinstance(schema, list) else schema


def fuzz(server: Server, method: str, path: str, examples: int) -> None:
    """Valid and broken requests to one operation; the models and the worker outlive all of them."""
    worker = server.worker
    schema = schemathesis.openapi.from_dict(narrowed(server.get("/openapi.json")))
    operation = schema[path][method]
    cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))

    @settings(max_examples=examples, deadline=None, suppress_health_check=QUIET, database=None)
    @given(case=cases)
    def check(case: schemathesis.Case) -> None:
        # Some refusals depend on two fields at once or on the model, which no schema can say.
        case.call_and_validate(
            base_url=server.url, timeout=PATIENCE, excluded_checks=[positive_data_acceptance]
        )

    check()
    server.settled()
    assert server.worker == worker
    log = server.err.read_text()
    assert "Traceback" not in log and "status=500" not in log, log[-5000:]


@pytest.mark.parametrize(("method", "path"), WORKING)
def test_no_input_breaks_the_contract(server: Server, method: str, path: str) -> None:
    fuzz(server, method, path, 15)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("method", "path"), WORKING)
def test_no_input_breaks_the_contract_at_length(server: Server, method: str, path: str) -> None:
    fuzz(server, method, path, 400)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_neither_do_the_other_operations(server: Server) -> None:
    """All but those that end or change the server."""
    paths = server.get("/openapi.json")["paths"]
    for path, item in paths.items():
        for method in item:
            if (method.upper(), path) in WORKING or (method == "post" and "/admin/" in path):
                continue
            fuzz(server, method, path, 50)
