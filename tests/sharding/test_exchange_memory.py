"""What an exchange allocates: once, as scheduled, and within the budget, waiting matrices and all."""

from __future__ import annotations

import ctypes
import time

import pytest
import torch
import torch.distributed as dist

from alphadecay_dist.engines.replicated import replicated_sources
from alphadecay_dist.spectral import Analysis, batch
from tests.engines.tiny import SHAPES, Uneven, matrices_of, value_of
from tests.multirank import run_ranks
from tests.sharding.gather import SMALL, collect, exchange_of, numel
from tests.sharding.test_exchange import Source

pytestmark = pytest.mark.ranks


def check_buffers():
    """Which buffers the rounds took, and whether peaks are as scheduled and within the budget."""
    rank, taken = dist.get_rank(), []
    whole = value_of("m", (64, 64), torch.float32)
    parts = [(0, 1024, (0,)), (1024, 3072, (1,)), (3072, 4096, (2,))]
    sources = [Source(f"m{n}", whole, parts, rank) for n in range(12)]
    all_to_all = dist.all_to_all_single

    def seen(buffer, packed, *rest, **options):
        taken[-1].append((buffer.data_ptr(), packed.data_ptr()))
        return all_to_all(buffer, packed, *rest, **options)

    dist.all_to_all_single = seen
    rooms = []
    for budget in (5 * whole.nbytes, 2 * whole.nbytes):
        taken.append([])
        exchange, found = exchange_of(sources, budget, dist.group.WORLD)
        matrices = dict(exchange.matrices())
        assert all(torch.equal(matrix, whole) for matrix in matrices.values())
        assert len({matrix.data_ptr() for matrix in matrices.values()}) == 4, "a matrix each, not buffers"
        assert len(taken[-1]) == len(found.rounds) == 4
        assert exchange.peak_bytes == exchange.schedule.peak[rank] <= budget
        rooms.append(exchange.room)
    received, packed = (set(own) for own in zip(*taken[0], strict=True))
    return len(received), len(packed), rooms


def test_buffers_serve_all_rounds_where_the_budget_has_room_for_them():
    for received, packed, (room, tight) in run_ranks(check_buffers, 3):
        assert (received, packed) == (2, 1)
        assert room >= 0
        assert tight == 0


def check_copies():
    """Whole weights of another type are copied where they lie, and that counts."""
    sources = replicated_sources(matrices_of(Uneven(SHAPES)), dist.group.WORLD)
    exchange, found = exchange_of(sources, SMALL, dist.group.WORLD, torch.bfloat16)
    own = [numel(s) for s in sources if found.owners[s.name] == dist.get_rank()]
    collect(exchange)
    assert exchange.peak_bytes == exchange.schedule.peak[dist.get_rank()] == 2 * max(own)
    assert exchange.room == 0


def test_copies_in_another_type_count():
    run_ranks(check_copies, 2)


HELD, ROWS, COLUMNS, BUDGET = 28, 64, 16384, 24 * 2**20  # matrices of 4 MiB


class Mallinfo(ctypes.Structure):
    """What glibc says of its heaps, see mallinfo2(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def allocated():
    """Bytes in use by this process; resident ones would count what glibc keeps of what was freed."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo
    found = mallinfo()
    return found.uordblks + found.hblkhd


def check_memory():
    """What is allocated beyond the weights while slow spectra pile up, on sixteen threads."""
    rank = dist.get_rank()
    whole = torch.ones(ROWS, COLUMNS)
    half = whole.numel() // 2
    parts = [(0, half, (0,)), (half, whole.numel(), (1,))]
    sources = [Source(f"m{n}", whole, parts, rank) for n in range(HELD)]
    exchange, _ = exchange_of(sources, BUDGET, dist.group.WORLD)
    resident = []

    def slow(weight, estimator):
        resident.append(allocated())
        time.sleep(0.5)  # long against the gathering, on a busy machine too
        return Analysis()

    batch.analyze = slow
    torch.set_num_threads(16)
    peaks = []
    for room in (exchange.room, None):
        resident.clear()
        before = allocated()
        assert len(batch.analyze_each(exchange.matrices(), room=room)) == HELD // 2
        peaks.append(max(resident) - before)
    return peaks


def test_matrices_that_wait_for_their_spectra_stay_within_the_budget():
    for bounded, unbounded in run_ranks(check_memory, 2):
        assert bounded <= BUDGET
        assert unbounded > BUDGET
