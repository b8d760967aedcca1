"""Sizes and rates with units -> bytes and bytes a second."""

from __future__ import annotations

import math
import re

from alphadecay_dist.errors import UserError, shown

PREFIXES = "kmgt"
NUMBER = r"(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)"
SIZE = re.compile(NUMBER + r"\s*(?:([kKmMgGtT]?)(i?)[bB])?")
RATE = re.compile(NUMBER + r"\s*(?:([kKmMgGtT]?)(i?)(B|[bB]ytes?|b|[bB]its?)(?:/s|ps)?)?")


def bytes_of(text: str, key: str) -> int:
    """Bytes of ``268435456``, ``256MiB`` or ``0.5 GB``.

    Args:
        text: a number; behind it kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024).
        key: what it was given for.

    Raises:
        UserError: it is no size, or not a whole number of bytes.
    """
    found = SIZE.fullmatch(text.strip())
    size = float(found[1]) * _factor(found[2], found[3]) if found else math.nan
    if not size.is_integer():
        raise UserError(f"{key}: found {shown(text)}, expected bytes, or a size such as 256MiB or 1.5GB")
    return int(size)


def bytes_per_second(text: str, key: str) -> float:
    """Bytes a second of ``25e9``, ``25GB/s``, ``25GiB`` or ``200Gb/s``.

    Args:
        text: a number; behind it a unit as in :func:`bytes_of`; a small b, ``bit`` and ``bps`` are bits.
        key: what it was given for.

    Raises:
        UserError: it is no rate, or not above 0.
    """
    found = RATE.fullmatch(text.strip())
    rate = float(found[1]) * _factor(found[2], found[3]) if found else math.nan
    if not 0 < rate < math.inf:
        raise UserError(f"{key}: found {shown(text)}, expected bytes a second, or such as 25GB/s or 200Gb/s")
    unit = found[4] if found else None
    return rate / 8 if unit is not None and (unit == "b" or "bit" in unit.lower()) else rate


def _factor(prefix: str | None, binary: str | None) -> int:
    base = 1024 if binary else 1000
    return base ** (PREFIXES.index(prefix.lower()) + 1) if prefix else 1
