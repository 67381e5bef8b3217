"""The CUDA back end against a strict fake driver. Nothing here touches a GPU."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from fake_cuda import CUresult, FakeDriver

from tenfold.core.errors import ConfigError, Conflict, DeviceError, OutOfMemory
from tenfold.memory.backends import open_backend
from tenfold.memory.cuda import CudaBackend, access_description, allocation_properties
from tenfold.memory.pool import PagePool

PAGE = 1 << 16


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    made = FakeDriver()
    yield made
    assert made.misuse == []


@pytest.fixture
def backend(driver: FakeDriver) -> Iterator[CudaBackend]:
    made = CudaBackend(PAGE, driver=driver)
    yield made
    made.close()
    assert driver.leaks() == []


def at(space, page: int) -> int:
    return space.address + page * PAGE


def test_mapped_pages_read_zero_and_hold_what_is_written(backend, driver):
    space = backend.reserve(6)
    backend.map(space, 1, 3)
    assert driver.read(at(space, 1), 3 * PAGE) == bytes(3 * PAGE)
    driver.write(at(space, 2), b"model a")
    assert driver.read(at(space, 2), 7) == b"model a"
    assert backend.census([space]) == (3 * PAGE, [3 * PAGE])


def test_every_address_of_a_reservation_is_readable_at_any_time(backend, driver):
    space = backend.reserve(5)
    assert driver.read(space.address, 5 * PAGE) == bytes(5 * PAGE)
    backend.map(space, 0, 5)
    driver.write(at(space, 3), b"\x07" * PAGE)
    backend.unmap(space, 2, 2)
    assert driver.read(at(space, 2), 2 * PAGE) == bytes(2 * PAGE)


def test_a_page_that_changes_hands_reads_zero(backend, driver):
    one, two = backend.reserve(2), backend.reserve(2)
    backend.map(one, 0, 2)
    driver.write(at(one, 0), b"secret")
    backend.unmap(one, 0, 2)
    created = driver.calls.count("cuMemCreate")
    backend.map(two, 0, 2)
    assert driver.calls.count("cuMemCreate") == created  # the very same physical pages
    assert driver.read(two.address, 2 * PAGE) == bytes(2 * PAGE)


def test_a_stray_write_stays_in_the_reservation_that_made_it(backend, driver):
    one, two = backend.reserve(2), backend.reserve(2)
    driver.write(one.address, b"stray")
    assert driver.read(two.address, 5) == bytes(5)


def test_one_access_call_for_a_run_of_pages(backend, driver):
    space = backend.reserve(16)
    before = driver.calls.count("cuMemSetAccess")
    backend.map(space, 4, 8)
    backend.unmap(space, 4, 8)
    assert driver.calls.count("cuMemSetAccess") == before + 2


def test_work_under_way_is_waited_for_before_anything_is_unmapped(backend, driver):
    space = backend.reserve(4)
    for act in (
        lambda: backend.map(space, 0, 3),  # unmaps the zero page
        lambda: backend.unmap(space, 0, 1),
        lambda: backend.release(space),
    ):
        driver.launch()
        act()
    assert not driver.running


def test_zeroes_are_written_before_a_page_is_handed_out(backend, driver):
    space = backend.reserve(2)
    backend.map(space, 0, 2)
    assert not driver.running  # another stream may read at once


def test_spare_handles_are_counted_and_trimmed(backend, driver):
    space = backend.reserve(4)
    backend.map(space, 0, 4)
    backend.unmap(space, 0, 3)
    assert backend.spare_pages == 3
    assert backend.census([space]) == (4 * PAGE, [PAGE])
    backend.trim(1)
    assert backend.spare_pages == 1
    assert backend.total_resident_bytes() == 2 * PAGE
    assert driver.bytes_used() == 3 * PAGE  # and the zero page


def test_out_of_memory_in_the_middle_of_a_batch_maps_nothing(driver):
    driver.budget_pages = 5  # one of them becomes the zero page
    backend = CudaBackend(PAGE, driver=driver)
    space = backend.reserve(8)
    backend.map(space, 0, 2)
    driver.write(space.address, b"kept")
    with pytest.raises(OutOfMemory, match="cuMemCreate on CUDA device 0: CUDA_ERROR_OUT_OF_MEMORY"):
        backend.map(space, 2, 3)
    assert backend.resident_bytes(space) == 2 * PAGE
    assert driver.read(space.address, 4) == b"kept"
    assert driver.read(at(space, 2), 3 * PAGE) == bytes(3 * PAGE)
    backend.map(space, 2, 2)  # what fits still fits
    backend.close()
    assert driver.leaks() == []


@pytest.mark.parametrize("call", ["cuMemMap", "cuMemUnmap", "cuMemSetAccess", "cuMemsetD8"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_call_that_fails_while_mapping_is_undone(backend, driver, call, after):
    space = backend.reserve(6)
    driver.fail = {call: after}
    try:
        backend.map(space, 1, 3)
    except DeviceError as exc:
        assert call in exc.message and "CUDA_ERROR_LAUNCH_FAILED" in exc.message
        assert backend.resident_bytes(space) == 0
    else:
        assert driver.fail  # there were not that many such calls
    driver.fail = {}
    assert driver.read(space.address, 6 * PAGE) == bytes(6 * PAGE)


@pytest.mark.parametrize(
    "call", ["cuMemAddressReserve", "cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemsetD8"]
)
def test_a_reservation_that_fails_leaves_nothing(backend, driver, call):
    driver.fail = {call: 0}
    with pytest.raises(DeviceError, match=call):
        backend.reserve(3)
    assert driver.reservations == {} and driver.handles == {}


def test_misuse_is_refused_before_the_driver_sees_it(backend, driver):
    space = backend.reserve(4)
    backend.map(space, 0, 2)
    with pytest.raises(Conflict, match="already mapped"):
        backend.map(space, 1, 2)
    with pytest.raises(Conflict, match="not mapped"):
        backend.unmap(space, 1, 2)
    with pytest.raises(Conflict, match="within 4"):
        backend.map(space, 3, 2)
    backend.release(space)
    with pytest.raises(Conflict, match="released"):
        backend.map(space, 0, 1)
    with pytest.raises(Conflict, match="0 pages"):
        backend.reserve(0)


def test_another_thread_gets_the_context(backend, driver):
    space = backend.reserve(2)
    driver.active = 0  # as in a thread that never called the driver
    thread = threading.Thread(target=backend.map, args=(space, 0, 2))
    thread.start()
    thread.join()
    assert backend.resident_bytes(space) == 2 * PAGE


def test_a_tensor_is_made_over_the_reservation(driver):
    seen = []

    def as_tensor(view, device):
        seen.append((view.__cuda_array_interface__, device))
        return torch.zeros(view.__cuda_array_interface__["shape"], dtype=torch.uint8)

    backend = CudaBackend(PAGE, driver=driver, as_tensor=as_tensor)
    space = backend.reserve(2)
    tensor = backend.tensor(space, 256, (4, 8), torch.bfloat16)
    assert tensor.shape == (4, 8) and tensor.dtype == torch.bfloat16
    ((interface, device),) = seen
    assert device == 0
    assert interface["data"] == (space.address + 256, False)
    assert interface["shape"] == (64,) and interface["typestr"] == "|u1"
    with pytest.raises(Conflict, match="does not lie"):
        backend.tensor(space, PAGE, (PAGE,), torch.float32)


def test_errors_of_a_machine_without_a_device():
    with pytest.raises(ConfigError, match="no usable CUDA device 0: cuInit"):
        CudaBackend(PAGE, driver=FakeDriver(devices=0))
    with pytest.raises(ConfigError, match="no usable CUDA device 3"):
        CudaBackend(PAGE, device=3, driver=FakeDriver())


def test_a_page_the_gpu_cannot_map_is_refused(driver):
    with pytest.raises(ConfigError, match="must be a multiple of 65536"):
        CudaBackend(PAGE // 2, driver=driver)
    assert driver.contexts == 0


def test_without_cuda_bindings_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(ConfigError, match=r"tenfold\[gpu\]"):
        open_backend("cuda")


def test_every_name_used_exists_in_the_real_bindings():
    real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    for name in dir(FakeDriver):
        if name.startswith(("cu", "CU")):
            assert hasattr(real, name), name
    assert int(real.CUresult.CUDA_ERROR_OUT_OF_MEMORY) == CUresult.CUDA_ERROR_OUT_OF_MEMORY
    properties = allocation_properties(real, 1)
    assert properties.location.id == 1
    assert properties.location.type == real.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    access = access_description(real, 1)
    assert access.location.id == 1
    assert access.flags == real.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE


def test_the_pool_counts_spare_handles_as_reserved(driver):
    pool = PagePool(CudaBackend(PAGE, driver=driver), capacity_pages=6, reserve_pages=2)
    one, two = pool.create("a", "kv", 6 * PAGE), pool.create("b", "kv", 6 * PAGE)
    assert one.map(range(6)) and not two.map([0])
    one.unmap(range(4))
    assert (pool.stats().mapped, pool.stats().reserved) == (2, 2)
    assert pool.check() == []
    assert two.map([1, 3, 4, 5]) and pool.check() == []
    assert pool.stats().reserved == 0
    pool.drop_owner("b")
    assert pool.check() == [] and pool.stats().reserved == 2
    pool.resize(2)
    assert pool.check() == [] and pool.stats().reserved == 0
    pool.close()
    assert driver.leaks() == []


def test_the_pool_survives_a_full_device(driver):
    driver.budget_pages = 6  # two zero pages, four for the models
    pool = PagePool(CudaBackend(PAGE, driver=driver), capacity_pages=50)
    one, two = pool.create("a", "kv", 8 * PAGE), pool.create("b", "kv", 8 * PAGE)
    assert one.map([0, 2, 4])
    assert not two.map([0, 2]) and "OUT_OF_MEMORY" in two.refusal
    assert pool.check() == [] and two.mapped_pages == 0
    assert two.map([7]) and pool.check() == []
    pool.close()
    assert driver.leaks() == []
