from __future__ import annotations

import json
import threading

import pytest

from tenfold.core.errors import InvalidRequest
from tenfold.core.types import Constraint
from tenfold.text import grammar_check
from tenfold.text.grammar import GrammarGate, validate_constraint
from tenfold.text.grammar_check import is_harmless


def schema(value: object) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


def chain(length: int) -> Constraint:
    """Schemas that refer to each other in a row."""
    defs: dict[str, object] = {
        f"a{n}": {"properties": {"x": {"$ref": f"#/$defs/a{n + 1}"}}} for n in range(length)
    }
    return schema({"$defs": defs | {f"a{length}": {}}, "$ref": "#/$defs/a0"})


GOOD = [
    Constraint("json_object"),
    schema(True),
    schema({"type": "object", "properties": {"a": {"type": "string", "maxLength": 20}}}),
    chain(20),
    chain(150),
    Constraint("regex", r"\d+"),
    Constraint("grammar", 'start: "yes" | "no"'),
]


@pytest.mark.parametrize("constraint", GOOD, ids=lambda c: f"{c.kind} {c.text[:20]}")
def test_good_ones_pass(constraint):
    validate_constraint(constraint)


BAD = [
    (schema({"type": "objec"}), "objec"),
    (schema({"type": "string", "pattern": "("}), "unclosed"),
    (Constraint("regex", "a("), "unclosed"),
    (Constraint("regex", r"a[^\s\S]"), "no text matches"),
    (Constraint("grammar", "start: foo"), "foo"),
]


@pytest.mark.parametrize(("constraint", "message"), BAD, ids=lambda x: str(x)[:40])
def test_bad_ones_do_not(constraint, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        validate_constraint(constraint, param="field")
    assert caught.value.param == "field"


HOSTILE = {
    "stack: terminals": Constraint(
        "grammar",
        "\n".join(["start: A0", *(f'A{n}: "x" A{n + 1}' for n in range(9000)), 'A9000: "y"']),
    ),
    "stack: rules": Constraint(
        "grammar", "\n".join(["start: a0", *(f"a{n}: a{n + 1}" for n in range(9000)), 'a9000: "y"'])
    ),
    "stack: references": chain(2000),
    "time: intersections": Constraint(
        "grammar", "start: A\nA: " + " & ".join(f"/[a-z]*x{n}[a-z]*/" for n in range(60))
    ),
    "time: optional letters": Constraint("regex", "a?" * 1000 + "a" * 1000),
    "panic: patterns": schema({"allOf": [{"pattern": f"[a-z]*x{n}[a-z]*"} for n in range(40)]}),
    "time: properties": schema(
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(8000)}}
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_hang_or_crash_is_refused(name):
    with pytest.raises(InvalidRequest, match="cannot be used") as caught:
        validate_constraint(HOSTILE[name], seconds=4.0)
    assert caught.value.param and len(caught.value.message) < 400


def test_only_small_plain_schemas_are_compiled_in_this_process():
    assert is_harmless(Constraint("json_object"))
    assert is_harmless(schema({"type": "object", "properties": {"pattern_": {"type": "string"}}}))
    assert not is_harmless(Constraint("regex", "a"))
    assert not is_harmless(Constraint("grammar", 'start: "a"'))
    assert not is_harmless(schema({"pattern": "a"}))
    assert not is_harmless(Constraint("json_schema", '{"p\\u0061ttern": "a"}'))
    assert not is_harmless(schema({"enum": ["x" * 9000]}))
    assert not is_harmless(chain(100))


def test_the_gate_remembers(monkeypatch: pytest.MonkeyPatch):
    asked: list[Constraint] = []

    def verdict(constraint: Constraint, *, param: str | None, seconds: float) -> None:
        asked.append(constraint)
        if constraint.text == "bad":
            raise InvalidRequest("bad indeed", param=param)

    monkeypatch.setattr(grammar_check, "validate_constraint", verdict)
    gate = GrammarGate(remembered=2)
    good, bad = Constraint("regex", "good"), Constraint("regex", "bad")
    for _ in range(3):
        gate.check(good)
        with pytest.raises(InvalidRequest, match="bad indeed") as caught:
            gate.check(bad)
        assert caught.value.param == "guided_regex"
    assert asked == [good, bad]
    gate.check(Constraint("regex", "third"))
    gate.check(bad.__class__("regex", "third"))
    gate.check(good)
    assert [c.text for c in asked] == ["good", "bad", "third", "good"]


def test_the_gate_is_shared_by_threads(monkeypatch: pytest.MonkeyPatch):
    inside = threading.Semaphore(2)
    crowded: list[bool] = []

    def verdict(constraint: Constraint, *, param: str | None, seconds: float) -> None:
        free = inside.acquire(blocking=False)
        crowded.append(not free)
        if free:
            inside.release()

    monkeypatch.setattr(grammar_check, "validate_constraint", verdict)
    gate = GrammarGate(parallel=2)
    threads = [
        threading.Thread(target=gate.check, args=(Constraint("regex", f"a{n}"),)) for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(crowded) == 12 and not any(crowded)
