"""How much of a file is in the page cache, and what changes that."""

from __future__ import annotations

import gc
import mmap
import os
import time
from pathlib import Path

import pytest

from tenfold.memory.linux import Kernel
from tenfold.memory.page_cache import (
    HeldFile,
    drop_from_page_cache,
    image_in_page_cache,
    read_ahead,
)

PAGES = 64


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.bin"
    path.write_bytes(os.urandom(PAGES * mmap.PAGESIZE - 100))
    return path


def test_a_file_just_written_is_there_and_a_dropped_one_is_not(image):
    assert image_in_page_cache(image) == 1.0
    drop_from_page_cache(image)
    left = image_in_page_cache(image)
    if left == 1.0:
        pytest.skip("this file system keeps its files in memory")
    assert left == 0.0
    with image.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # one page is one page
        stream.read(10)
    assert 0 < image_in_page_cache(image) < 1
    read_ahead(image)
    image.read_bytes()
    assert image_in_page_cache(image) == 1.0


def test_the_share_is_by_pages(image, monkeypatch):
    asked = []

    def some(self, address, length, pages):
        asked.append((length, pages))
        return bytes([3] * 16 + [2] * (pages - 16))  # only the lowest bit says so

    monkeypatch.setattr(Kernel, "mincore", some)
    assert image_in_page_cache(image) == 16 / PAGES
    assert asked == [(PAGES * mmap.PAGESIZE - 100, PAGES)]


def test_looking_leaves_no_mapping(image):
    kernel = Kernel()
    before = kernel.smaps().count(b"image.bin")
    image_in_page_cache(image)
    assert kernel.smaps().count(b"image.bin") == before == 0


def test_files_that_are_empty_or_not_there(tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    assert image_in_page_cache(empty) == 1.0
    for act in (image_in_page_cache, read_ahead, drop_from_page_cache):
        with pytest.raises(FileNotFoundError):
            act(tmp_path / "none")


# --- held files -----------------------------------------------------------------------------------
class NoLocks(Kernel):
    """As for a user whose ``ulimit -l`` is spent."""

    def mlock(self, address: int, length: int) -> None:
        raise PermissionError(1, "mlock")


def mapped(image: Path) -> int:
    return Kernel().smaps().count(image.name.encode())


def until(true) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("kernel", [Kernel(), NoLocks()])
def test_a_held_file_stays_when_the_system_is_told_to_forget_it(image, kernel):
    drop_from_page_cache(image)
    held = HeldFile(image, lambda nbytes: nbytes == image.stat().st_size, kernel)
    held.hold(after=0)
    held.hold(after=0)  # once is enough
    until(lambda: mapped(image) == 1 and image_in_page_cache(image) == 1.0)
    drop_from_page_cache(image)
    assert image_in_page_cache(image) == 1.0
    held.drop()
    until(lambda: mapped(image) == 0)


def test_a_file_is_held_from_a_moment_on_until_it_is_read_again(image):
    held = HeldFile(image, lambda _: True)
    held.hold(after=60)
    assert mapped(image) == 0
    thread = held.release()
    thread.join(20)
    assert not thread.is_alive() and held.release() is None
    held.hold(after=0)
    until(lambda: mapped(image) == 1)
    held.release().join(20)
    assert mapped(image) == 0


def test_what_is_not_allowed_or_not_there_is_not_held(image, tmp_path):
    for path, allowed in ((image, False), (tmp_path / "none", True)):
        held = HeldFile(path, lambda _, allowed=allowed: allowed)
        held.hold(after=0)
        held._thread.join(20)
        assert not held._thread.is_alive() and mapped(path) == 0


def test_nobody_holds_what_nobody_has(image):
    held = HeldFile(image, lambda _: True)
    held.hold(after=0)
    until(lambda: mapped(image) == 1)
    thread = held._thread
    del held
    gc.collect()
    thread.join(20)
    assert mapped(image) == 0
