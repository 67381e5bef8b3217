"""Both CPU back ends against the kernel's own count: /proc/self/smaps and st_blocks."""

from __future__ import annotations

import errno
import gc
import random

import pytest
import torch

from tenfold.core.errors import ConfigError, Conflict, OutOfMemory
from tenfold.memory.backends import backends, open_backend
from tenfold.memory.linux import MADV_POPULATE_WRITE, Kernel
from tenfold.memory.residency import resident


def every_page(backend, space):
    """A byte of every system page, by way of an ordinary tensor."""
    return backend.tensor(space, 0, (space.pages * space.page_bytes,), torch.uint8)[::4096]


def test_memory_comes_and_goes_by_the_systems_count(backend, page_bytes):
    space = backend.reserve(8)
    assert backend.census([space]) == (0, [0])
    backend.map(space, 2, 3)
    assert backend.census([space]) == (3 * page_bytes, [3 * page_bytes])
    backend.unmap(space, 3, 1)
    assert backend.resident_bytes(space) == 2 * page_bytes
    assert backend.total_resident_bytes() == (2 + backend.spare_pages) * page_bytes
    backend.release(space)
    backend.trim(0)
    assert backend.total_resident_bytes() == backend.spare_pages == 0


def test_reading_unmapped_pages_gives_zeros_and_costs_nothing(backend, page_bytes):
    space = backend.reserve(6)
    seen = every_page(backend, space)
    assert not seen.any()  # before anything was mapped
    backend.map(space, 0, 6)
    seen.fill_(7)
    backend.unmap(space, 1, 4)
    assert int(seen.count_nonzero()) == 2 * page_bytes // 4096
    backend.trim(0)
    assert backend.census([space]) == (2 * page_bytes, [2 * page_bytes])
    backend.map(space, 0 + 1, 4)  # over the zero page that the read put there
    assert backend.resident_bytes(space) == 6 * page_bytes


def test_a_page_mapped_again_reads_zero(backend):
    space = backend.reserve(2)
    backend.map(space, 0, 2)
    every_page(backend, space).fill_(9)
    backend.unmap(space, 0, 1)
    backend.map(space, 0, 1)
    assert int(every_page(backend, space).count_nonzero()) == space.page_bytes // 4096


def test_reservations_are_counted_apart(backend, page_bytes):
    spaces = [backend.reserve(4) for _ in range(5)]
    for index, space in enumerate(spaces[:4]):
        backend.map(space, 0, index + 1)
    want = [(index + 1) * page_bytes for index in range(4)] + [0]
    assert backend.census(spaces) == (sum(want), want)


def test_huge_pages_are_asked_for_where_they_fit_and_refused_elsewhere(backend, page_bytes):
    kernel = Kernel()
    if not kernel.huge_page_bytes():
        pytest.skip("this kernel has no transparent huge pages")
    space = backend.reserve(4)
    backend.map(space, 0, 4)
    entry = kernel.smaps().split(b"%x-" % space.address)[1]
    flags = entry.split(b"VmFlags:")[1].split(b"\n")[0].split()
    fits = page_bytes % kernel.huge_page_bytes() == 0
    assert (b"hg" in flags, b"nh" in flags) == (fits, not fits)


def test_two_backends_do_not_know_each_other(name, page_bytes):
    one, two = open_backend(name, page_bytes), open_backend(name, page_bytes)
    space = one.reserve(2)
    one.map(space, 0, 2)
    assert two.total_resident_bytes() == 0
    with pytest.raises(Conflict, match="another backend"):
        two.map(space, 0, 1)
    one.close()
    two.close()


def test_huge_reservations_cost_nothing(backend, page_bytes):
    space = backend.reserve((64 << 30) // page_bytes)
    assert backend.total_resident_bytes() == 0
    backend.map(space, space.pages - 1, 1)
    assert backend.total_resident_bytes() == page_bytes


def test_tensors_are_ordinary_and_typed(backend, page_bytes):
    space = backend.reserve(2)
    backend.map(space, 0, 2)
    weights = backend.tensor(space, 4096, (16, 8), torch.float32)
    weights.copy_(torch.arange(128.0).view(16, 8))
    torch.testing.assert_close(weights @ weights.T, weights.clone() @ weights.clone().T)
    half = backend.tensor(space, 4096, (256,), torch.bfloat16)
    assert half.view(torch.float32).equal(weights.view(-1))
    assert backend.tensor(space, 0, (0, 4), torch.float16).shape == (0, 4)
    for offset, shape in [(2, (4,)), (-4, (4,)), (2 * page_bytes - 4, (2,))]:
        with pytest.raises(Conflict, match="does not lie, aligned, within"):
            backend.tensor(space, offset, shape, torch.float32)


def test_a_view_may_be_read_after_its_range_is_gone(backend):
    space = backend.reserve(3)
    seen = every_page(backend, space)
    backend.map(space, 0, 3)
    seen.fill_(5)
    backend.release(space)
    del space  # now only the view holds the addresses
    gc.collect()
    assert not seen.any()
    backend.trim(0)
    assert backend.total_resident_bytes() == 0


def test_memory_of_one_reservation_comes_up_in_another_and_reads_zero(page_bytes):
    backend = open_backend("memfd", page_bytes)
    one, two = backend.reserve(6), backend.reserve(6)
    backend.map(one, 0, 4)
    every_page(backend, one)[: 4 * page_bytes // 4096].fill_(9)
    backend.unmap(one, 1, 2)
    assert (backend.spare_pages, backend.total_resident_bytes()) == (2, 4 * page_bytes)
    backend.map(two, 2, 3)  # the two spare ones and a new one
    assert backend.census([one, two]) == (5 * page_bytes, [2 * page_bytes, 3 * page_bytes])
    assert not every_page(backend, two).any()
    every_page(backend, two)[2 * page_bytes // 4096 :][: 3 * page_bytes // 4096].fill_(5)
    backend.map(one, 1, 2)  # their own frames are two's now
    assert int((every_page(backend, one) == 9).sum()) == 2 * page_bytes // 4096
    assert not (every_page(backend, one) == 5).any()
    backend.unmap(two, 2, 3)
    backend.trim(1)
    assert backend.census([one, two]) == (5 * page_bytes, [4 * page_bytes, 0])
    backend.close()


def test_attached_pages_are_no_memory_until_they_are_populated(backend, page_bytes):
    space = backend.reserve(4)
    backend.attach(space, 1, 2)
    assert backend.total_resident_bytes() == 0
    backend.unmap(space, 1, 1)
    backend.populate(space, 2, 1)
    assert backend.census([space]) == (page_bytes, [page_bytes])
    assert not every_page(backend, space).any()


def test_address_space_goes_with_the_last_view(name):
    kernel = Kernel()
    backend = open_backend(name, 64 << 10)
    backend.reserve(1)
    before = kernel.mapping_count()
    for _ in range(50):
        space = backend.reserve(4)
        backend.map(space, 1, 1)
        backend.release(space)
    del space
    gc.collect()
    assert kernel.mapping_count() <= before + 10  # other threads may map something meanwhile
    backend.close()


def test_misuse_is_refused(backend):
    space = backend.reserve(4)
    for first, count in [(-1, 1), (3, 2), (0, 0)]:
        with pytest.raises(Conflict, match="do not lie within 4"):
            backend.map(space, first, count)
    with pytest.raises(Conflict, match="0 pages"):
        backend.reserve(0)
    backend.release(space)
    with pytest.raises(Conflict, match="released"):
        backend.unmap(space, 0, 1)


@pytest.mark.parametrize("bad", [0, 1000, 4096 + 512])
def test_a_page_size_the_system_cannot_map_is_refused(name, bad):
    with pytest.raises(ConfigError, match="multiple of the system page"):
        open_backend(name, bad)


def test_elsewhere_than_on_linux_it_says_so(name, monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ConfigError, match=r"64-bit Linux .* this is 'darwin'"):
        open_backend(name)


def test_back_ends_by_name():
    assert backends().names() == ["anon", "cuda", "memfd"]
    with pytest.raises(ConfigError, match="choose from anon, cuda, memfd"):
        open_backend("hugetlb")


def test_address_space_that_cannot_be_had(backend):
    with pytest.raises(OutOfMemory, match="no address space"):
        backend.reserve((1 << 47) // backend.page_bytes)
    assert backend.guard.own == 0


class Stubborn(Kernel):
    """A kernel that populates ``allowed`` bytes at most, or not at all where it is too old."""

    def __init__(self, allowed: int = 0, code: int = errno.ENOMEM) -> None:
        super().__init__()
        self.allowed = allowed
        self.code = code

    def madvise(self, address: int, length: int, advice: int) -> None:
        if advice == MADV_POPULATE_WRITE:
            if self.allowed:
                super().madvise(address, min(length, self.allowed), advice)
            raise OSError(self.code, "no more")
        super().madvise(address, length, advice)


def test_no_memory_in_the_middle_keeps_nothing(name, page_bytes):
    backend = open_backend(name, page_bytes, kernel=Stubborn(page_bytes))
    space = backend.reserve(4)
    mappings = backend.guard.own
    with pytest.raises(OutOfMemory, match="the system has no memory"):
        backend.map(space, 1, 3)
    assert backend.census([space]) == (0, [0])
    assert backend.guard.own == mappings
    assert not every_page(backend, space).any()
    backend.close()


def test_kernels_before_5_14_are_populated_by_touch(name, page_bytes):
    backend = open_backend(name, page_bytes, kernel=Stubborn(code=errno.EINVAL))
    space = backend.reserve(4)
    backend.map(space, 1, 2)
    assert backend.census([space]) == (2 * page_bytes, [2 * page_bytes])
    backend.close()


class Crowded(Kernel):
    """A kernel that allows few mappings."""

    limit = 65530

    def max_map_count(self) -> int:
        return self.limit


def test_memfd_refuses_before_half_of_max_map_count():
    kernel = Crowded()
    backend = open_backend("memfd", 64 << 10, kernel=kernel)
    space = backend.reserve(400)
    kernel.limit = 2 * (kernel.mapping_count() + 60)
    mapped = 0
    with pytest.raises(OutOfMemory, match=r"max_map_count \(\d+\)"):
        for page in range(0, 400, 2):
            backend.map(space, page, 1)
            mapped += 1
            assert kernel.mapping_count() < kernel.limit / 2
    assert 20 <= mapped <= 30  # every other page costs two mappings
    assert backend.resident_bytes(space) == mapped * (64 << 10)
    backend.map(space, 1, 1)  # closing a gap frees mappings, so it is allowed
    with pytest.raises(OutOfMemory, match="max_map_count"):
        backend.reserve(4)
    backend.close()


def test_memfd_refuses_to_split_a_mapping_too_many():
    kernel = Crowded()
    backend = open_backend("memfd", 64 << 10, kernel=kernel)
    space = backend.reserve(100)
    backend.map(space, 0, 100)
    kernel.limit = 2 * (kernel.mapping_count() + 1)
    with pytest.raises(OutOfMemory, match="max_map_count"):
        backend.unmap(space, 50, 1)
    assert backend.resident_bytes(space) == 100 * (64 << 10)
    backend.unmap(space, 0, 100)
    backend.close()


@pytest.mark.parametrize("limit", [1])
def test_anon_needs_no_mapping_per_page(limit):
    kernel = Crowded()
    backend = open_backend("anon", 64 << 10, kernel=kernel)
    space = backend.reserve(400)
    kernel.limit = limit
    before = kernel.mapping_count()
    for page in range(0, 400, 2):
        backend.map(space, page, 1)
    assert kernel.mapping_count() <= before + 10
    backend.close()


class Counting(Kernel):
    """A kernel that counts the bytes it was asked for anew."""

    def __init__(self) -> None:
        super().__init__()
        self.populated = 0

    def madvise(self, address: int, length: int, advice: int) -> None:
        super().madvise(address, length, advice)
        self.populated += length * (advice == MADV_POPULATE_WRITE)


def test_anon_hands_memory_over_without_asking_for_more(page_bytes):
    kernel = Counting()
    backend = open_backend("anon", page_bytes, kernel=kernel)
    one, two = backend.reserve(150), backend.reserve(150)
    backend.map(one, 10, 100)
    every_page(backend, one)[10 * page_bytes // 4096 : 110 * page_bytes // 4096] = 7
    assert kernel.populated == 100 * page_bytes
    backend.unmap(one, 10, 100)
    assert backend.spare_pages == 100 and not every_page(backend, one).any()
    backend.map(two, 20, 120)
    assert kernel.populated == 120 * page_bytes and backend.spare_pages == 0
    assert backend.census([one, two]) == (120 * page_bytes, [0, 120 * page_bytes])
    assert not every_page(backend, two).any()  # what was handed over reads zero
    backend.unmap(two, 20, 120)
    backend.trim(30)
    assert backend.census([two]) == (30 * page_bytes, [0])
    backend.map(one, 0, 40)
    assert backend.census([one]) == (40 * page_bytes, [40 * page_bytes])
    backend.close()
    assert backend.total_resident_bytes() == 0


class Old(Kernel):
    """Linux before 5.7."""

    def mremap(self, address: int, length: int, flags: int, target: int) -> None:
        raise OSError(errno.EINVAL, "mremap")


def test_anon_hands_nothing_over_where_the_kernel_cannot_move_it():
    backend = open_backend("anon", 64 << 10, kernel=Old())
    assert not backend.hands_over
    space = backend.reserve(8)
    backend.map(space, 0, 8)
    backend.unmap(space, 2, 4)
    assert backend.spare_pages == 0
    assert backend.census([space]) == (4 * (64 << 10), [4 * (64 << 10)])
    backend.close()


def test_anon_gives_to_the_system_what_would_be_a_mapping_too_many():
    kernel = Crowded()
    backend = open_backend("anon", 64 << 10, kernel=kernel)
    one, two = backend.reserve(400), backend.reserve(400)
    backend.map(one, 0, 400)
    kernel.limit = 2 * (kernel.mapping_count() + 60)
    least = backend.guard.own

    def few() -> bool:
        """Whether there are as few of ours as are allowed; threads of others come and go."""
        ours = kernel.mapping_count() - kernel.mapping_count(backend.guard.spans)
        return ours <= backend.guard.own < least + 100  # of 400 without a limit

    for page in range(0, 400, 2):
        backend.unmap(one, page, 1)
        assert few()
    assert 20 <= backend.spare_pages < 100
    spare = backend.spare_pages
    assert backend.census([one]) == ((200 + spare) * (64 << 10), [200 * (64 << 10)])
    for page in range(399, 199, -2):
        backend.map(two, page, 1)
        assert few()
    assert backend.spare_pages == 0 and backend.resident_bytes(two) == 100 * (64 << 10)
    backend.close()


def test_anon_counts_no_fewer_mappings_than_the_system(page_bytes):
    kernel = Kernel()
    before = kernel.mapping_count()
    backend = open_backend("anon", page_bytes, kernel=kernel)
    spaces = [backend.reserve(40), backend.reserve(40)]
    pick = random.Random(6)
    mapped: set[tuple[int, int]] = set()
    for turn in range(300):
        at = pick.randrange(2), pick.randrange(40)
        (backend.unmap if at in mapped else backend.map)(spaces[at[0]], at[1], 1)
        mapped ^= {at}
        if turn % 50 == 49:
            backend.trim(5)
            assert kernel.mapping_count() - before <= backend.guard.own + 6
            held = (len(mapped) + backend.spare_pages) * page_bytes
            assert backend.total_resident_bytes() == held
    for space in spaces:
        backend.release(space)
    backend.trim(0)
    assert backend.guard.own == 3  # the shelf
    backend.close()
    assert backend.guard.own == 0


def test_the_count_of_mappings_is_the_systems(page_bytes):
    kernel = Kernel()
    before = kernel.mapping_count()
    backend = open_backend("memfd", page_bytes, kernel=kernel)
    space = backend.reserve(40)
    pick = random.Random(5)
    mapped: set[int] = set()
    for _ in range(120):
        page = pick.randrange(40)
        (backend.unmap if page in mapped else backend.map)(space, page, 1)
        mapped ^= {page}
    # Guard, arena, guard. Neighbours in the file merge.
    assert backend.guard.own == 3 + space.mappings(0, 40)
    assert abs(kernel.mapping_count() - before - backend.guard.own) <= 6
    backend.map(space, *sorted(set(range(40)) - mapped)[:1], 1)
    backend.release(space)
    assert backend.guard.own == 0
    backend.close()


def test_swapped_out_pages_still_count():
    class Swapped(Kernel):
        def smaps(self) -> bytes:
            return (
                b"1000-3000 rw-p 00000000 00:00 0 \nSize: 8 kB\nRss:  4 kB\nPss: 4 kB\n"
                b"Swap:   4 kB\nSwapPss: 0 kB\nVmFlags: rd\n"
                b"4000-5000 rw-p 00000000 00:00 0  [heap]\nRss: 4 kB\nSwap: 0 kB\nVmFlags: rd\n"
            )

    assert resident(Swapped(), [(0x1000, 0x3000), (0x5000, 0x6000)]) == [8192, 0]
    assert resident(Swapped(), []) == []
