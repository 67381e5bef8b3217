"""Which workers a model belongs on, and what is to be told to whoever moves models between them.

Here is the simple answer, every worker, of which nothing moves; ``placement`` has the other one.
Knows no request.
"""

from __future__ import annotations

from typing import Protocol

from tenfold.core.errors import InvalidRequest
from tenfold.core.messages import Event
from tenfold.fleet.served import ModelSource, ServedModel
from tenfold.fleet.supervisor import Supervisor


class Places(Protocol):
    """``moves``: whether models, and with them answers that have begun, go to other workers. All
    methods belong to the service's event loop."""

    moves: bool

    async def settle(self, sources: list[ModelSource]) -> None:
        """Choose where models go before they are loaded."""
        ...

    def start(self) -> None:
        """All that was to be loaded first is."""
        ...

    async def stop(self) -> None: ...

    def of(self, source: ModelSource) -> list[Supervisor]:
        """The workers of a model that is about to be loaded. Raises InvalidRequest for a device
        that is not there."""
        ...

    def forget(self, model: str) -> None:
        """The model is served no more."""
        ...

    def asked(self, entry: ServedModel) -> None:
        """A request for the model is about to be sent."""
        ...

    def call_ended(self) -> None:
        """A request is over, wherever it was."""
        ...

    def heard(self, device: str, event: Event) -> None: ...
    def lost(self, device: str) -> None: ...
    def drained(self, device: str) -> None:
        """A worker is to get nothing new."""
        ...


def named(supervisors: dict[str, Supervisor], device: str) -> Supervisor:
    """Raises InvalidRequest for a device that is not there."""
    if device not in supervisors:
        raise InvalidRequest(
            f"no device {device!r}; there are {', '.join(supervisors)}", param="device"
        )
    return supervisors[device]


class Everywhere:
    """Every worker holds every model but those that name a device."""

    moves = False

    def __init__(self, supervisors: dict[str, Supervisor]) -> None:
        self._supervisors = supervisors

    def of(self, source: ModelSource) -> list[Supervisor]:
        if source.device is None:
            return list(self._supervisors.values())
        return [named(self._supervisors, source.device)]

    async def settle(self, sources: list[ModelSource]) -> None: ...
    def start(self) -> None: ...
    async def stop(self) -> None: ...
    def forget(self, model: str) -> None: ...
    def asked(self, entry: ServedModel) -> None: ...
    def call_ended(self) -> None: ...
    def heard(self, device: str, event: Event) -> None: ...
    def lost(self, device: str) -> None: ...
    def drained(self, device: str) -> None: ...
