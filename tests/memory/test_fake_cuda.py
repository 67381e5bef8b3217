"""The fake driver itself: does it notice what the real one would punish?"""

from __future__ import annotations

import pytest
from fake_cuda import CUresult, FakeDriver

from tenfold.memory.cuda import access_description, allocation_properties

PAGE = 1 << 16


@pytest.fixture
def driver() -> FakeDriver:
    made = FakeDriver()
    made.cuInit(0)
    made.cuCtxSetCurrent(made.cuDevicePrimaryCtxRetain(0)[1])
    return made


def reserve(driver: FakeDriver, pages: int) -> int:
    return int(driver.cuMemAddressReserve(pages * PAGE, PAGE, 0, 0)[1])


def handle(driver: FakeDriver):
    return driver.cuMemCreate(PAGE, allocation_properties(driver, 0), 0)[1]


def failed(driver: FakeDriver, result, words: str) -> bool:
    return result[0] == CUresult.CUDA_ERROR_INVALID_VALUE and words in driver.misuse[-1]


def test_double_map(driver):
    address = reserve(driver, 2)
    driver.cuMemMap(address, PAGE, 0, handle(driver), 0)
    assert failed(driver, driver.cuMemMap(address, PAGE, 0, handle(driver), 0), "mapped already")


def test_map_of_unreserved_addresses(driver):
    address = reserve(driver, 1)
    beyond = address + PAGE
    assert failed(driver, driver.cuMemMap(beyond, PAGE, 0, handle(driver), 0), "not reserved")


def test_unmap_of_part_of_a_mapping_or_of_nothing(driver):
    address = reserve(driver, 2)
    driver.cuMemMap(address, PAGE, 0, handle(driver), 0)
    assert failed(driver, driver.cuMemUnmap(address, PAGE // 2), "not one whole mapping")
    assert failed(driver, driver.cuMemUnmap(address + PAGE, PAGE), "not one whole mapping")


def test_unmap_while_work_is_running(driver):
    address = reserve(driver, 1)
    driver.cuMemMap(address, PAGE, 0, handle(driver), 0)
    driver.launch()
    assert failed(driver, driver.cuMemUnmap(address, PAGE), "while work is running")


def test_release_of_a_mapped_or_unknown_handle(driver):
    address, mine = reserve(driver, 1), handle(driver)
    driver.cuMemMap(address, PAGE, 0, mine, 0)
    assert failed(driver, driver.cuMemRelease(mine), "while mapped")
    driver.cuMemUnmap(address, PAGE)
    driver.cuMemRelease(mine)
    assert failed(driver, driver.cuMemRelease(mine), "unknown handle")


def test_access_to_what_is_not_mapped_or_not_open(driver):
    address = reserve(driver, 2)
    driver.cuMemMap(address, PAGE, 0, handle(driver), 0)
    access = [access_description(driver, 0)]
    assert failed(driver, driver.cuMemSetAccess(address, 2 * PAGE, access, 1), "not all mapped")
    with pytest.raises(AssertionError, match="illegal address"):
        driver.read(address, 1)  # mapped, but nobody was given access
    driver.cuMemSetAccess(address, PAGE, access, 1)
    assert driver.read(address, 4) == b"\xaa" * 4
    with pytest.raises(AssertionError, match="illegal address"):
        driver.read(address + PAGE - 1, 2)


def test_freeing_addresses_with_mappings_or_of_the_wrong_size(driver):
    address = reserve(driver, 2)
    driver.cuMemMap(address, PAGE, 0, handle(driver), 0)
    assert failed(driver, driver.cuMemAddressFree(address, 2 * PAGE), "mappings inside")
    assert failed(driver, driver.cuMemAddressFree(address, PAGE), "not that reservation")


def test_calls_without_a_context(driver):
    driver.active = 0
    assert driver.cuMemAddressReserve(PAGE, PAGE, 0, 0)[0] == CUresult.CUDA_ERROR_INVALID_CONTEXT


def test_leaks_are_listed(driver):
    address = reserve(driver, 1)
    driver.cuMemMap(address, PAGE, 0, handle(driver), 0)
    assert len(driver.leaks()) == 4  # the addresses, the mapping, the handle, the context
