"""Is a constraint fit to be queued? Asked at the edge, before a worker ever sees it.

Knows no model: a grammar is tried on a stand-in vocabulary. A grammar that could hang or crash a
process is tried in a child process (``grammar_trial``), with limits on time, memory and stack.
"""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

from tenfold.core.errors import InvalidRequest
from tenfold.core.types import Constraint
from tenfold.text.grammar_source import field_of, grammar_text, panics_refused, refuse

GRAMMAR_SECONDS = 10.0

_SMALL_SCHEMA_CHARS = 8 * 1024
_SMALL_SCHEMA_REFS = 64
_COSTLY_KEYWORDS = re.compile(
    r'"(?:pattern|patternProperties|propertyNames|allOf|multipleOf|minLength|maxLength'
    r'|minItems|maxItems|minProperties|maxProperties|x-guidance)"|\\u'
)
"""``\\u``: an escape could spell one of these words unseen."""


def validate_constraint(
    constraint: Constraint, *, param: str | None = None, seconds: float = GRAMMAR_SECONDS
) -> None:
    """Raise InvalidRequest, blaming ``param``, unless the constraint compiles and runs in time.

    Blocks for milliseconds on a small JSON schema, and for about 0.1 s on a regex, a grammar or a
    large schema, which are tried in a child process; at most ``seconds``. Call it from a thread.
    """
    field = field_of(constraint, param)
    grammar = grammar_text(constraint, param=param)
    if is_harmless(constraint):
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False)
        with panics_refused(field):
            bad, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=limits)
        message = messages[0] if bad else None
    else:
        message = _try_elsewhere(grammar, seconds)
    if message is not None:
        refuse(message, field)


def is_harmless(constraint: Constraint) -> bool:
    """Whether compiling it here is surely cheap: a small schema without costly keywords."""
    if constraint.kind == "json_object":
        return True
    text = constraint.text
    return (
        constraint.kind == "json_schema"
        and len(text) <= _SMALL_SCHEMA_CHARS
        and text.count("$ref") <= _SMALL_SCHEMA_REFS
        and not _COSTLY_KEYWORDS.search(text)
    )


class GrammarGate:
    """``validate_constraint`` with a memory of its verdicts, for a server. Threads may share it.

    At most ``parallel`` child processes run at once, so that a flood of grammars cannot take the
    machine; further callers wait their turn.
    """

    def __init__(
        self, seconds: float = GRAMMAR_SECONDS, *, remembered: int = 512, parallel: int = 2
    ) -> None:
        self._seconds = seconds
        self._remembered = remembered
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(parallel)
        self._verdicts: OrderedDict[tuple[Constraint, str], str | None] = OrderedDict()

    def check(self, constraint: Constraint, *, param: str | None = None) -> None:
        """Raise InvalidRequest as ``validate_constraint`` does."""
        key = (constraint, field_of(constraint, param))
        with self._lock:
            known = key in self._verdicts
            if known:
                self._verdicts.move_to_end(key)
                verdict = self._verdicts[key]
        if not known:
            with self._slots:
                verdict = self._verdict(constraint, param)
            with self._lock:
                self._verdicts[key] = verdict
                while len(self._verdicts) > self._remembered:
                    self._verdicts.popitem(last=False)
        if verdict is not None:
            raise InvalidRequest(verdict, param=key[1])

    def _verdict(self, constraint: Constraint, param: str | None) -> str | None:
        try:
            validate_constraint(constraint, param=param, seconds=self._seconds)
        except InvalidRequest as exc:
            return exc.message
        return None


def _try_elsewhere(grammar: str, seconds: float) -> str | None:
    """The trial's verdict: None, or why the grammar is refused."""
    # Processor seconds are what the trial may use; a loaded machine gets more wall time for them.
    cpu = max(1, math.ceil(seconds / 4))
    too_slow = f"it is too costly: it does not compile and run within {cpu} processor seconds"
    script = str(Path(__file__).with_name("grammar_trial.py"))
    try:
        done = subprocess.run(
            [sys.executable, "-P", script, str(cpu)],
            input=grammar.encode(),
            capture_output=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return too_slow
    if done.returncode in (-signal.SIGKILL, -signal.SIGXCPU):
        return too_slow
    if done.returncode != 0:
        return "it is too complex: compiling it ran out of stack or memory"
    error = json.loads(done.stdout)["error"]
    return None if error is None else str(error)
