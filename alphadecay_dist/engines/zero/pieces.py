"""Which rank has which elements of a weight at stage 3."""

from __future__ import annotations

import functools

from alphadecay_dist.sharding.layout import Piece, flat_chunks


@functools.lru_cache(maxsize=1024)
def chunk_pieces(numel: int, world_size: int) -> list[Piece]:
    """A piece a rank; ranks past the end of a small tensor have none.

    One list for all weights of a size: ranks then compare it once.
    """
    return [Piece((rank,), part) for rank, part in enumerate(flat_chunks(numel, world_size)) if part.numel]
