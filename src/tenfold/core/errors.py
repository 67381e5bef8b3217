"""One tree of errors. Each class carries the HTTP status and the CLI exit code it becomes.

    TenfoldError 500
    ├── InvalidRequest 400            a field of a request is wrong (``param`` names it)
    │   └── ContextTooLong 400        prompt (+ max_tokens) does not fit the model's context
    ├── Unauthorized 401              no key, or an unknown one
    ├── Forbidden 403                 a known key that may not do this
    ├── NotFound 404
    │   └── ModelNotFound 404
    ├── Conflict 409                  the state forbids it now (loading twice, unload while pinned)
    ├── TooLarge 413                  body over the size limit
    ├── UnsupportedMedia 415          the body is not application/json
    ├── Overloaded 429                a queue is full; carries ``retry_after`` seconds
    │   └── RateLimited 429           a client or its group is at a hard limit (``limit`` names it)
    ├── Unavailable 503               draining, or no worker came back in time
    ├── DeadlineExceeded 504          the request's own deadline passed
    ├── WorkerLost 502                the worker died after the request had sent a token
    ├── OutOfMemory 507               the pool's budget cannot hold what was asked
    ├── DeviceError 500               a device's driver refused a call, or lost the device
    └── ConfigError / ModelFileError / PullError   exit code 2; a file or setting is unusable

A message says what happened, with the values, and what to change. Knows nothing of HTTP bodies.
"""

from __future__ import annotations

from typing import ClassVar


class TenfoldError(Exception):
    """Base of all errors meant for a person. ``param`` is the offending field, if there is one."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class InvalidRequest(TenfoldError):
    status = 400
    code = "invalid_request_error"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class Unauthorized(TenfoldError):
    status = 401
    code = "invalid_api_key"


class Forbidden(TenfoldError):
    status = 403
    code = "forbidden"


class NotFound(TenfoldError):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class Conflict(TenfoldError):
    status = 409
    code = "conflict"


class TooLarge(TenfoldError):
    status = 413
    code = "request_too_large"


class UnsupportedMedia(TenfoldError):
    status = 415
    code = "unsupported_media_type"


class Overloaded(TenfoldError):
    status = 429
    code = "rate_limit_exceeded"


class RateLimited(Overloaded):
    """``retry_after`` None: no waiting helps, the request alone is above the limit."""

    def __init__(self, message: str, *, limit: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.limit = limit


class WorkerLost(TenfoldError):
    status = 502
    code = "worker_lost"


class Unavailable(TenfoldError):
    status = 503
    code = "unavailable"


class DeadlineExceeded(TenfoldError):
    status = 504
    code = "deadline_exceeded"


class OutOfMemory(TenfoldError):
    status = 507
    code = "out_of_memory"


class DeviceError(TenfoldError):
    code = "device_error"


class ConfigError(TenfoldError):
    code = "config_error"
    exit_code = 2


class ModelFileError(TenfoldError):
    status = 422
    code = "model_file_error"
    exit_code = 2


class PullError(TenfoldError):
    status = 502
    code = "pull_error"
    exit_code = 2


def _tree(cls: type[TenfoldError]) -> dict[str, type[TenfoldError]]:
    found: dict[str, type[TenfoldError]] = {}
    for sub in cls.__subclasses__():
        found.update(_tree(sub))
    return found | {cls.code: cls}  # of two with one code, the more general


def from_code(code: str, message: str, *, param: str | None = None) -> TenfoldError:
    """Rebuild an error that crossed a process border as (code, message, param)."""
    return _tree(TenfoldError).get(code, TenfoldError)(message, param=param)
