"""Pages of an NVIDIA GPU's memory, through the driver's virtual memory calls. Not yet run on a GPU.

Every page is one allocation handle mapped at its own address. Where no page is mapped, the
reservation's own zero page is, so a stray read is legal; a stray write stays within the model that
made it. Zero pages cost one page per reservation on top of the pool's budget. Handles of unmapped
pages are kept as spare (creating one is the slow part: 193 us against 1.5 us for a map, measured
by the kvcached project on an A100) until ``trim``.

Knows nothing of budgets and owners. The driver is ``cuda.bindings.driver`` unless another is given;
tests give a strict fake. The calls are those of "CUDA Driver API, Virtual Memory Management".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, dtype

from tenfold.core.errors import ConfigError, Conflict, DeviceError, OutOfMemory, TenfoldError
from tenfold.memory.base import Census, Reservation
from tenfold.memory.linux import require_linux
from tenfold.memory.views import elements

_OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY; 0 is CUDA_SUCCESS."""


class CudaSpace(Reservation):
    """A reservation on the device. ``shown[p]`` is the handle mapped at page p's address:
    the page's own, or ``zero``; None only while a call is under way."""

    def __init__(self, address: int, pages: int, page_bytes: int, zero: Any) -> None:
        super().__init__(address=address, pages=pages, page_bytes=page_bytes)
        self.zero = zero
        self.shown: list[Any | None] = [None] * pages

    def at(self, page: int) -> int:
        """Address of a page."""
        return self.address + page * self.page_bytes

    def mapped(self, page: int) -> bool:
        """Whether the page has memory of its own."""
        return self.shown[page] is not None and self.shown[page] is not self.zero


class _Bytes:
    """Device bytes as other libraries take them over (CUDA array interface, version 3)."""

    def __init__(self, address: int, length: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (length,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def _on_device(view: object, device: int) -> Tensor:
    return torch.as_tensor(view, device=torch.device("cuda", device))


def _load_driver() -> Any:
    require_linux("the cuda backend")
    try:
        from cuda.bindings import driver
    except ImportError as exc:
        raise ConfigError(
            "the cuda backend needs the package cuda-bindings: pip install 'tenfold[gpu]'"
        ) from exc
    return driver


class CudaBackend:
    """The ``cuda`` backend of one device. See ``PageBackend`` for the contract.

    ``page_bytes`` is a multiple of the driver's granularity (2 MiB on current GPUs). The device's
    primary context is used, which is torch's. Raises ConfigError where there is no usable device.
    A view must not outlive ``release``: its addresses are gone then.
    """

    hands_over = True

    def __init__(
        self,
        page_bytes: int = 2 << 20,
        device: int = 0,
        driver: Any = None,
        as_tensor: Callable[[object, int], Tensor] = _on_device,
    ) -> None:
        self.page_bytes = page_bytes
        self._driver = driver or _load_driver()
        self._device = device
        self._as_tensor = as_tensor
        self._spaces: dict[int, CudaSpace] = {}
        self._spare: list[Any] = []
        self._pages_held = 0
        try:
            self._call("cuInit", 0)
            self._handle = self._call("cuDeviceGet", device)
            self._context = self._call("cuDevicePrimaryCtxRetain", self._handle)
        except (RuntimeError, TenfoldError) as exc:
            raise ConfigError(f"no usable CUDA device {device}: {exc}") from exc
        self._properties = allocation_properties(self._driver, device)
        self._access = access_description(self._driver, device)
        self._enter()
        flag = self._driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        grain = int(self._call("cuMemGetAllocationGranularity", self._properties, flag))
        if page_bytes < grain or page_bytes % grain:
            self._call("cuDevicePrimaryCtxRelease", self._handle)
            raise ConfigError(
                f"page_bytes is {page_bytes}; on this GPU it must be a multiple of {grain}"
            )

    @property
    def spare_pages(self) -> int:
        return len(self._spare)

    def reserve(self, pages: int) -> Reservation:
        if pages < 1:
            raise Conflict(f"a reservation of {pages} pages")
        self._enter()
        size = pages * self.page_bytes
        address = int(self._call("cuMemAddressReserve", size, self.page_bytes, 0, 0))
        space = CudaSpace(address, pages, self.page_bytes, None)
        try:
            space.zero = self._call("cuMemCreate", self.page_bytes, self._properties, 0)
            self._show(space, 0, [space.zero] * pages)
            self._clear(address, self.page_bytes)
        except TenfoldError:
            self._dismantle(space)
            raise
        self._spaces[address] = space
        return space

    def map(self, space: Reservation, first: int, count: int) -> None:
        self.attach(space, first, count)

    def populate(self, space: Reservation, first: int, count: int) -> None:
        """Nothing is left to do: all driver calls are made in ``attach``, under the pool's lock,
        as one beside a graph that is being recorded would spoil it."""

    def attach(self, space: Reservation, first: int, count: int) -> None:
        mine = self._span(space, first, count, mapped=False)
        self._enter()
        handles = self._take(count)
        try:
            self._call("cuCtxSynchronize")  # a running kernel may be reading the zero page
            self._show(mine, first, handles)
            self._clear(mine.at(first), count * self.page_bytes)
        except TenfoldError:
            self._show(mine, first, [mine.zero] * count)
            self._spare.extend(handles)
            raise

    def unmap(self, space: Reservation, first: int, count: int) -> None:
        mine = self._span(space, first, count, mapped=True)
        self._enter()
        handles = mine.shown[first : first + count]
        self._call("cuCtxSynchronize")
        self._show(mine, first, [mine.zero] * count)
        self._spare.extend(handles)

    def zero(self, space: Reservation, first: int, count: int) -> None:
        mine = self._span(space, first, count, mapped=True)
        self._enter()
        self._clear(mine.at(first), count * self.page_bytes)

    def release(self, space: Reservation) -> None:
        mine = self._ours(space)
        self._enter()
        self._call("cuCtxSynchronize")
        del self._spaces[mine.address]
        handles = [mine.shown[page] for page in range(mine.pages) if mine.mapped(page)]
        self._dismantle(mine)
        self._spare.extend(handles)

    def trim(self, keep: int) -> None:
        self._enter()
        while len(self._spare) > max(keep, 0):
            self._call("cuMemRelease", self._spare.pop())
            self._pages_held -= 1

    def tensor(
        self, space: Reservation, offset: int, shape: tuple[int, ...], kind: dtype
    ) -> Tensor:
        mine = self._ours(space)
        count = elements(mine.pages * self.page_bytes, offset, shape, kind)
        if count == 0:
            return torch.empty(shape, dtype=kind, device=torch.device("cuda", self._device))
        view = _Bytes(mine.address + offset, count * kind.itemsize)
        return self._as_tensor(view, self._device).view(kind).view(shape)

    def resident_bytes(self, space: Reservation) -> int:
        return self.census([space]).spaces[0]

    def total_resident_bytes(self) -> int:
        return self._pages_held * self.page_bytes

    def census(self, spaces: Sequence[Reservation]) -> Census:
        """Per reservation: the pages whose address holds another handle than the zero page's,
        asked of the driver page by page. In all: handles created less released, as the driver has
        no such count per process. Zero pages are in neither."""
        self._enter()
        found = [self._count(self._ours(space)) * self.page_bytes for space in spaces]
        return Census(self.total_resident_bytes(), found)

    def close(self) -> None:
        for space in list(self._spaces.values()):
            self.release(space)
        self.trim(0)
        self._call("cuDevicePrimaryCtxRelease", self._handle)

    def _count(self, space: CudaSpace) -> int:
        pages = 0
        for page in range(space.pages):
            handle = self._call("cuMemRetainAllocationHandle", space.at(page))
            self._call("cuMemRelease", handle)  # asking took a reference
            pages += int(handle) != int(space.zero)
        return pages

    def _take(self, count: int) -> list[Any]:
        """Handles of ``count`` pages, spare ones first; all of them or OutOfMemory."""
        taken: list[Any] = []
        try:
            while len(taken) < count:
                if self._spare:
                    taken.append(self._spare.pop())
                    continue
                taken.append(self._call("cuMemCreate", self.page_bytes, self._properties, 0))
                self._pages_held += 1
        except TenfoldError:
            self._spare.extend(taken)
            raise
        return taken

    def _show(self, space: CudaSpace, first: int, handles: Sequence[Any]) -> None:
        """Put these handles at consecutive addresses, whatever is there, and open them all at once.

        One access call for the run: it is what costs most when pages come one by one."""
        for page, handle in enumerate(handles, first):
            if space.shown[page] is handle:
                continue
            if space.shown[page] is not None:
                self._call("cuMemUnmap", space.at(page), self.page_bytes)
                space.shown[page] = None
            self._call("cuMemMap", space.at(page), self.page_bytes, 0, handle, 0)
            space.shown[page] = handle
        length = len(handles) * self.page_bytes
        self._call("cuMemSetAccess", space.at(first), length, [self._access], 1)

    def _dismantle(self, space: CudaSpace) -> None:
        """Take a reservation apart: mappings, zero page, addresses."""
        for page, handle in enumerate(space.shown):
            if handle is not None:
                self._call("cuMemUnmap", space.at(page), self.page_bytes)
                space.shown[page] = None
        if space.zero is not None:
            self._call("cuMemRelease", space.zero)
        self._call("cuMemAddressFree", space.address, space.pages * self.page_bytes)

    def _clear(self, address: int, length: int) -> None:
        """Write zeros, and wait: the next reader may be on any stream."""
        self._call("cuMemsetD8", address, 0, length)
        self._call("cuCtxSynchronize")

    def _ours(self, space: Reservation) -> CudaSpace:
        mine = self._spaces.get(space.address)
        if mine is not space:
            raise Conflict("this reservation was released, or belongs to another backend")
        return mine

    def _span(self, space: Reservation, first: int, count: int, *, mapped: bool) -> CudaSpace:
        mine = self._ours(space)
        if first < 0 or count < 1 or first + count > mine.pages:
            raise Conflict(f"{count} pages from page {first} do not lie within {mine.pages}")
        for page in range(first, first + count):
            if mine.mapped(page) is not mapped:
                raise Conflict(f"page {page} is {'not' if mapped else 'already'} mapped")
        return mine

    def _enter(self) -> None:
        """The driver works on the calling thread's context; any thread may call us."""
        if int(self._call("cuCtxGetCurrent")) != int(self._context):
            self._call("cuCtxSetCurrent", self._context)

    def _call(self, name: str, *arguments: Any) -> Any:
        """One driver call. Raises OutOfMemory or DeviceError, naming the call."""
        code, *values = getattr(self._driver, name)(*arguments)
        if int(code) == 0:
            return values[0] if values else None
        _, text = self._driver.cuGetErrorName(code)
        label = text.decode() if isinstance(text, bytes) else f"error {int(code)}"
        message = f"{name} on CUDA device {self._device}: {label}"
        raise OutOfMemory(message) if int(code) == _OUT_OF_MEMORY else DeviceError(message)


def allocation_properties(driver: Any, device: int) -> Any:
    """What ``cuMemCreate`` makes: memory that lives on the device."""
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = device
    return properties


def access_description(driver: Any, device: int) -> Any:
    """What ``cuMemSetAccess`` grants: reading and writing from the device."""
    access = driver.CUmemAccessDesc()
    access.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    access.location.id = device
    access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    return access
