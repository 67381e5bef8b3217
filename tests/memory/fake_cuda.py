"""A strict stand-in for ``cuda.bindings.driver``: the virtual memory calls, with real bytes behind.

It keeps the driver's rules and is stricter where the real one would be undefined or silent: a
handle may not be released while mapped, nothing may be unmapped while work is running, and every
call but a few needs a current context. A broken rule returns the driver's error code *and* is
written down in ``misuse``, so that a test sees it even where the code under test swallowed it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_LAUNCH_FAILED = 719


class _Number:
    """A driver value that is an integer only when asked: a pointer, a handle, a context."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __int__(self) -> int:
        return self._value


@dataclass
class _Handle:
    data: bytearray
    references: int = 1
    mappings: int = 0


@dataclass
class _Mapping:
    size: int
    handle: int
    open: bool = False


@dataclass
class FakeDriver:
    """One device of ``budget_pages`` x ``grain`` bytes. ``fail`` maps a call's name to the number
    of calls that still succeed before it fails once with ``fail_with``."""

    grain: int = 1 << 16
    budget_pages: int = 64
    devices: int = 1
    fail: dict[str, int] = field(default_factory=dict)
    fail_with: CUresult = CUresult.CUDA_ERROR_LAUNCH_FAILED
    calls: list[str] = field(default_factory=list)
    misuse: list[str] = field(default_factory=list)
    reservations: dict[int, int] = field(default_factory=dict)
    handles: dict[int, _Handle] = field(default_factory=dict)
    mappings: dict[int, _Mapping] = field(default_factory=dict)
    running: bool = False
    contexts: int = 0
    active: int = 0
    initialised: bool = False

    CUmemAllocationType = SimpleNamespace(CU_MEM_ALLOCATION_TYPE_PINNED=1)
    CUmemLocationType = SimpleNamespace(CU_MEM_LOCATION_TYPE_DEVICE=1)
    CUmemAccess_flags = SimpleNamespace(CU_MEM_ACCESS_FLAGS_PROT_READWRITE=3)
    CUmemAllocationGranularity_flags = SimpleNamespace(CU_MEM_ALLOC_GRANULARITY_MINIMUM=0)

    def CUmemAllocationProp(self) -> Any:
        return SimpleNamespace(type=0, location=SimpleNamespace(type=0, id=-1))

    def CUmemAccessDesc(self) -> Any:
        return SimpleNamespace(flags=0, location=SimpleNamespace(type=0, id=-1))

    # Device and context.

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        self.initialised = True
        return self._done("cuInit") if self.devices else (CUresult.CUDA_ERROR_INVALID_DEVICE,)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        if ordinal >= self.devices:
            return CUresult.CUDA_ERROR_INVALID_DEVICE, None
        return self._done("cuDeviceGet", ordinal)

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:
        self.contexts += 1
        return self._done("cuDevicePrimaryCtxRetain", _Number(77))

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[Any, ...]:
        self.contexts -= 1
        return self._done("cuDevicePrimaryCtxRelease")

    def cuCtxGetCurrent(self) -> tuple[Any, ...]:
        return CUresult.CUDA_SUCCESS, _Number(self.active)

    def cuCtxSetCurrent(self, context: _Number) -> tuple[Any, ...]:
        self.active = int(context)
        return self._done("cuCtxSetCurrent")

    def cuCtxSynchronize(self) -> tuple[Any, ...]:
        if code := self._refused("cuCtxSynchronize"):
            return (code,)
        self.running = False
        return self._done("cuCtxSynchronize")

    def cuGetErrorName(self, code: CUresult) -> tuple[Any, ...]:
        return CUresult.CUDA_SUCCESS, CUresult(code).name.encode()

    # Virtual memory.

    def cuMemGetAllocationGranularity(self, prop: Any, option: int) -> tuple[Any, ...]:
        self._expect_device_memory(prop)
        return self._done("cuMemGetAllocationGranularity", self.grain)

    def cuMemAddressReserve(
        self, size: int, alignment: int, address: int, flags: int
    ) -> tuple[Any, ...]:
        if code := self._refused("cuMemAddressReserve"):
            return code, None
        if size <= 0 or size % self.grain or alignment % self.grain or address or flags:
            return self._wrong(f"reserve {size} aligned {alignment}"), None
        end = max((at + length for at, length in self.reservations.items()), default=1 << 40)
        start = -(-(end + self.grain) // alignment) * alignment
        self.reservations[start] = size
        return self._done("cuMemAddressReserve", _Number(start))

    def cuMemAddressFree(self, address: int, size: int) -> tuple[Any, ...]:
        if code := self._refused("cuMemAddressFree"):
            return (code,)
        if self.reservations.get(address) != size:
            return (self._wrong(f"free of {size} bytes at {address:#x}: not that reservation"),)
        if any(address <= at < address + size for at in self.mappings):
            return (self._wrong(f"free of {address:#x} with mappings inside"),)
        del self.reservations[address]
        return self._done("cuMemAddressFree")

    def cuMemCreate(self, size: int, prop: Any, flags: int) -> tuple[Any, ...]:
        if code := self._refused("cuMemCreate"):
            return code, None
        self._expect_device_memory(prop)
        if size <= 0 or size % self.grain or flags:
            return self._wrong(f"create {size}"), None
        if self.bytes_used() + size > self.budget_pages * self.grain:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        number = 1000 + len(self.calls)
        self.handles[number] = _Handle(bytearray(b"\xaa" * size))  # fresh memory is not zero
        return self._done("cuMemCreate", _Number(number))

    def cuMemRelease(self, handle: _Number) -> tuple[Any, ...]:
        if code := self._refused("cuMemRelease"):
            return (code,)
        found = self.handles.get(int(handle))
        if found is None:
            return (self._wrong(f"release of unknown handle {int(handle)}"),)
        if found.references == 1 and found.mappings:
            return (self._wrong(f"release of handle {int(handle)} while mapped"),)
        found.references -= 1
        if not found.references:
            del self.handles[int(handle)]
        return self._done("cuMemRelease")

    def cuMemMap(
        self, address: int, size: int, offset: int, handle: _Number, flags: int
    ) -> tuple[Any, ...]:
        if code := self._refused("cuMemMap"):
            return (code,)
        found = self.handles.get(int(handle))
        if found is None or offset or flags or size != len(found.data):
            return (self._wrong(f"map of handle {int(handle)}, {size} bytes from {offset}"),)
        if address % self.grain or not self._reserved(address, size):
            return (self._wrong(f"map at {address:#x}, which is not reserved"),)
        if any(at < address + size and address < at + m.size for at, m in self.mappings.items()):
            return (self._wrong(f"map at {address:#x}, which is mapped already"),)
        found.mappings += 1
        self.mappings[address] = _Mapping(size, int(handle))
        return self._done("cuMemMap")

    def cuMemUnmap(self, address: int, size: int) -> tuple[Any, ...]:
        if code := self._refused("cuMemUnmap"):
            return (code,)
        if self.running:
            return (self._wrong(f"unmap at {address:#x} while work is running"),)
        found = self.mappings.get(address)
        if found is None or found.size != size:
            return (self._wrong(f"unmap of {size} bytes at {address:#x}: not one whole mapping"),)
        self.handles[found.handle].mappings -= 1
        del self.mappings[address]
        return self._done("cuMemUnmap")

    def cuMemSetAccess(
        self, address: int, size: int, descriptions: list[Any], count: int
    ) -> tuple[Any, ...]:
        if code := self._refused("cuMemSetAccess"):
            return (code,)
        (description,) = descriptions
        if count != 1 or description.flags != 3 or description.location.type != 1:
            return (self._wrong("access that is not reading and writing from a device"),)
        inside = [m for at, m in self.mappings.items() if address <= at < address + size]
        if size <= 0 or sum(m.size for m in inside) != size:
            return (self._wrong(f"access to {size} bytes at {address:#x}, not all mapped"),)
        for mapping in inside:
            mapping.open = True
        return self._done("cuMemSetAccess")

    def cuMemRetainAllocationHandle(self, address: int) -> tuple[Any, ...]:
        found = self.mappings.get(address)
        if found is None:
            return self._wrong(f"handle of {address:#x}, where nothing is mapped"), None
        self.handles[found.handle].references += 1
        return self._done("cuMemRetainAllocationHandle", _Number(found.handle))

    def cuMemsetD8(self, address: int, value: int, count: int) -> tuple[Any, ...]:
        if code := self._refused("cuMemsetD8"):
            return (code,)
        self.running = True  # on device memory it returns before it is done
        self.write(address, bytes([value]) * count)
        return self._done("cuMemsetD8")

    # What a kernel would do, and what a test wants to know.

    def launch(self) -> None:
        """Start work that runs until the context is synchronised."""
        self.running = True

    def read(self, address: int, length: int) -> bytes:
        """Bytes as a kernel on the device sees them; AssertionError where it would fault."""
        mapping, offset = self._accessible(address)
        data = self.handles[mapping.handle].data[offset : offset + length]
        rest = length - len(data)
        return bytes(data) + (self.read(address + len(data), rest) if rest else b"")

    def write(self, address: int, data: bytes) -> None:
        """Write as a kernel on the device would."""
        mapping, offset = self._accessible(address)
        here = min(len(data), mapping.size - offset)
        self.handles[mapping.handle].data[offset : offset + here] = data[:here]
        if here < len(data):
            self.write(address + here, data[here:])

    def bytes_used(self) -> int:
        return sum(len(handle.data) for handle in self.handles.values())

    def leaks(self) -> list[str]:
        """What was not given back."""
        left = [f"reservation {at:#x}" for at in self.reservations]
        left += [f"mapping {at:#x}" for at in self.mappings]
        left += [f"handle {number}" for number in self.handles]
        return left + [f"{self.contexts} contexts"] * bool(self.contexts)

    def _accessible(self, address: int) -> tuple[_Mapping, int]:
        for at, mapping in self.mappings.items():
            if at <= address < at + mapping.size:
                if mapping.open:
                    return mapping, address - at
                break
        self.misuse.append(f"access to {address:#x}: illegal address")
        raise AssertionError(self.misuse[-1])

    def _reserved(self, address: int, size: int) -> bool:
        return any(
            at <= address and address + size <= at + length
            for at, length in self.reservations.items()
        )

    def _expect_device_memory(self, prop: Any) -> None:
        if (prop.type, prop.location.type) != (1, 1) or not 0 <= prop.location.id < self.devices:
            self.misuse.append("properties that are not pinned memory of a device")

    def _refused(self, name: str) -> CUresult | None:
        """The code a call fails with before it starts: no context, or a test's wish."""
        if not self.initialised:
            return CUresult.CUDA_ERROR_NOT_INITIALIZED
        if self.active != 77:
            return self._wrong(f"{name} without a current context", "CUDA_ERROR_INVALID_CONTEXT")
        if name in self.fail:
            self.fail[name] -= 1
            if self.fail[name] < 0:
                del self.fail[name]
                return self.fail_with
        return None

    def _wrong(self, what: str, code: str = "CUDA_ERROR_INVALID_VALUE") -> CUresult:
        self.misuse.append(what)
        return CUresult[code]

    def _done(self, name: str, *values: Any) -> tuple[Any, ...]:
        self.calls.append(name)
        return (CUresult.CUDA_SUCCESS, *values)
