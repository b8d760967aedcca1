"""Which failed reads to retry, how long to wait before that, and where to continue reading."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from alphadecay_dist.errors import UserError

T = TypeVar("T")

# Seconds before each new attempt. The hub's client also tries for half a minute each time. Together this is
# about six minutes, less than the ten after which NCCL gives up on the ranks that wait for this one.
WAITS = (1, 2, 4, 8, 16, 32, 64)

PASSING_STATUS = (408, 429)  # and all from 500 on

# By module; a module that was not imported cannot have raised an error.
PASSING = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "httpx": ("TransportError",),
    "httpx2": ("TransportError",),
    "requests.exceptions": ("ConnectionError", "Timeout", "ChunkedEncodingError"),
    "urllib3.exceptions": ("ProtocolError", "TimeoutError"),
    "http.client": ("IncompleteRead",),
}


def is_transient(error: BaseException) -> bool:
    """Whether to retry a failed read: yes for connection errors, timeouts and errors of the server.

    Not for what the server refuses (no such file, no access), for requests that are not allowed (offline
    mode), or for data that cannot be decoded.
    """
    chain = list(_chain(error))
    statuses = [status for status in map(_status, chain) if status is not None]
    if statuses:
        return all(status >= 500 or status in PASSING_STATUS for status in statuses)
    if any(type(link).__name__ == "OfflineModeIsEnabled" for link in chain):
        return False
    return any(isinstance(link, _passing_types()) for link in chain)


class Backoff:
    """Waits longer before each new attempt after a failure, up to a number of attempts."""

    def __init__(self) -> None:
        self._failures = 0

    def progress(self) -> None:
        """Something was read: the next failure counts as the first one again."""
        self._failures = 0

    def wait(self, where: str, error: BaseException) -> bool:
        """Wait before the next attempt; returns False at once if there were enough attempts."""
        if self._failures == len(WAITS):
            return False
        seconds = WAITS[self._failures]
        self._failures += 1
        attempt = f"attempt {self._failures} of {len(WAITS)}"
        print(f"data: {where}: {_reason(error)}; {attempt} in {seconds} s", file=sys.stderr, flush=True)
        time.sleep(seconds)
        return True


def read_on(read: Callable[[int], Iterator[T]], start: int, where: str) -> Iterator[tuple[int, T]]:
    """Row numbers and rows from ``start`` on; after a failed connection, reading continues at the next row.

    Args:
        read: returns the rows from a row number on.
        start: the first row.
        where: name of the source in errors.

    Raises:
        UserError: the source cannot be read.
    """
    row = start
    patience = Backoff()
    while True:
        try:
            for value in read(row):
                yield row, value
                row += 1
                patience.progress()
            return
        except UserError:
            raise
        except Exception as error:  # readers raise a dozen unrelated types: EOFError, zlib.error, Arrow's
            if not (is_transient(error) and patience.wait(where, error)):
                raise UserError(
                    f"data: {where}: cannot be read: {_reason(error)} (at row {row}); check it, or give "
                    "another data.source"
                ) from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(error: BaseException) -> int | None:
    """The HTTP status of an answer: aiohttp stores it on the error, the others on a response."""
    status = getattr(error, "status", None)
    if not isinstance(status, int):
        status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _passing_types() -> tuple[type[BaseException], ...]:
    found: list[type[BaseException]] = [ConnectionError, TimeoutError]
    for module, names in PASSING.items():
        found += [getattr(sys.modules[module], name) for name in names if module in sys.modules]
    return tuple(found)
