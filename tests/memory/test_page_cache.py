"""How much of a file is in the page cache, and what changes that."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from tenfold.memory.linux import Kernel
from tenfold.memory.page_cache import drop_from_page_cache, image_in_page_cache, read_ahead

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
