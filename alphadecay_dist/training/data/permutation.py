"""A seeded permutation of any length, in which any place can be computed without the others."""

from __future__ import annotations

import hashlib
import struct

ROUNDS = 6
WORD = (1 << 64) - 1


class Permutation:
    """A bijection of 0 ... size - 1, determined by a name.

    A Feistel network permutes the next power of four. A result outside ``size`` is permuted again (cycle
    walking), less than four times on average.

    Args:
        size: number of places, at least 1.
        name: determines the permutation, such as "<seed> <epoch>".
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half) - 1
        digest = hashlib.blake2b(name.encode(), digest_size=8 * ROUNDS).digest()
        self._keys = struct.unpack(f"<{ROUNDS}Q", digest)

    def __getitem__(self, place: int) -> int:
        """The number at a place."""
        if not 0 <= place < self._size:
            raise IndexError(f"place {place} of {self._size}")
        while True:
            left, right = place >> self._half, place & self._mask
            for key in self._keys:
                left, right = right, left ^ (_mixed(right ^ key) & self._mask)
            place = left << self._half | right
            if place < self._size:
                return place


def _mixed(word: int) -> int:
    """The finalizer of splitmix64: every bit of a 64-bit word depends on every other."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31
