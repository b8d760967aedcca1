"""Values of a JSON that somebody else may have written, each checked as it is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from alphadecay_dist.errors import shown

LARGEST = 2**63 - 1  # what a counter may be: files, tensors and seeds hold no more


def get(data: Any, key: str, kind: type) -> Any:
    """A value of a type.

    Raises:
        ValueError: it is missing or of another type, or ``data`` is no object.
    """
    if not isinstance(data, dict) or not isinstance(data.get(key), kind):
        found = data.get(key) if isinstance(data, dict) else data
        raise ValueError(f"has {shown(found)} as {key}, expected a {kind.__name__}")
    return data[key]


def count(data: Any, key: str) -> int:
    """A whole number from 0 on.

    Raises:
        ValueError: it is not one.
    """
    return counted(get(data, key, int), key)


def counted(value: Any, key: str) -> int:
    """``value`` where it is a whole number from 0 on.

    Raises:
        ValueError: it is not one.
    """
    if type(value) is not int or not 0 <= value <= LARGEST:  # true is an int to Python
        raise ValueError(f"has {shown(value)} as {key}, expected a number")
    return value


def finite(value: Any, key: str) -> float:
    """``value`` where it is a finite number.

    Raises:
        ValueError: it is not one.
    """
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"has {shown(value)} as {key}, expected a number")
    return number


def items(data: Any, key: str, kind: type) -> Sequence[tuple[str, Any]]:
    """An object's keys and values, which are all of one type.

    Raises:
        ValueError: they are not.
    """
    found = get(data, key, dict)
    for value in found.values():
        if not isinstance(value, kind):
            raise ValueError(f"has {shown(value)} in {key}, expected a {kind.__name__}")
    return list(found.items())
