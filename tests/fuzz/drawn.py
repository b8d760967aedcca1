"""How much is drawn, what may come of it, and the changes that are made to what is whole."""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from alphadecay_dist.errors import LONGEST, UserError
from tests.json_trees import JSON, Place, places, put

TIMES = int(os.environ.get("FUZZ_DRAWS", "0"))
SECONDS = 60  # nothing that is drawn may take longer, on a busy machine either


def draws(count: int) -> settings:
    """Settings for so many draws."""
    return settings(
        max_examples=count * max(TIMES, 1),
        derandomize=not TIMES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class HangError(BaseException):
    """It took too long; no handler of errors catches it."""


@contextlib.contextmanager
def soon() -> Iterator[None]:
    """Raise where it does not end."""

    def ring(*_: Any) -> None:
        raise HangError(f"not done in {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def accepted(work: Callable[[], Any], refusal: type[Exception] = UserError) -> bool:
    """Whether it goes well; else it is refused in one line. Anything else is raised."""
    try:
        with soon():
            work()
    except refusal as error:
        text = str(error)
        assert text
        assert text.isprintable(), text
        assert len(text) <= LONGEST + 200, text
        return False
    return True


def snapshot(folder: Path) -> dict[str, Any]:
    """What lies in a directory: names and contents."""
    if not folder.exists():
        return {}
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else path.is_dir()
        for path in folder.rglob("*")
    }


def nested(depth: int) -> Any:
    """Lists in lists."""
    tree: Any = 1
    for _ in range(depth):
        tree = [tree]
    return tree


HUGE = (10**30, -(10**30), 2**63, 2**31, 10**4000, 1e308, -1e308, 5e-324)
ODD_NUMBERS = (0, -1, 1, 2, 3, 0.5, -0.5, math.nan, math.inf, -math.inf, True, False, *HUGE)
ODD_TEXTS = (
    "",
    " ",
    "\0",
    "a\nb",
    "\x1b[31m",
    "é\u202e\ufeff",
    "\ud800",
    "x" * 5000,
    "../..",
    "/nonexistent/file",
    "/" + "x" * 5000,
    "__class__",
    "{0.__class__}",
    "%s%n",
    "auto",
    "null",
    "-1",
    "1e999",
    "nan",
)
ODD = st.one_of(
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_TEXTS),
    st.none(),
    JSON,
    st.sampled_from([nested(10), nested(100), [], {}, [[]], {"": {}}, [None] * 50]),
)


@st.composite
def changed(draw: st.DrawFn, tree: Any, most: int = 3) -> Any:
    """A tree with a few things in it dropped, added, renamed, moved or replaced."""
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.sampled_from(list(places(tree))))
        tree = put(tree, place, draw(st.sampled_from(CHANGES))(draw, at(tree, place), tree))
    return tree


def at(tree: Any, place: Place) -> Any:
    """The value in a place."""
    for key in place:
        tree = tree[key]
    return tree


def replace(draw: st.DrawFn, _value: Any, _tree: Any) -> Any:
    return draw(ODD)


def move(draw: st.DrawFn, _value: Any, tree: Any) -> Any:
    """Something from elsewhere in the tree."""
    return at(tree, draw(st.sampled_from(list(places(tree)))))


def reshape(draw: st.DrawFn, value: Any, _tree: Any) -> Any:
    """The value in another form."""
    forms = [[value], {"x": value}, str(value)[:200], [value, value]]
    if isinstance(value, int | float):
        forms += [-value, value + 1, float(value) if abs(value) < 1e300 else value, bool(value)]
    return draw(st.sampled_from(forms))


def edit(draw: st.DrawFn, value: Any, _tree: Any) -> Any:
    """A key or an item less, more, or by another name."""
    if isinstance(value, dict):
        pairs = list(value.items())
        if pairs and draw(st.booleans()):
            key, content = pairs.pop(draw(st.integers(0, len(pairs) - 1)))
            if draw(st.booleans()):
                pairs.append((draw(st.sampled_from([key + "x", key.upper(), *ODD_TEXTS])), content))
        else:
            pairs.append((draw(st.sampled_from(ODD_TEXTS)), draw(ODD)))
        return dict(pairs)
    if isinstance(value, list):
        count = draw(st.integers(0, len(value)))
        return draw(st.sampled_from([value[:count], value[count:], value + value[:count], value[::-1]]))
    return draw(ODD)


CHANGES = (replace, move, reshape, edit, edit)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file's bytes, cut short, emptied, with bytes flipped, added or taken out."""
    place = draw(st.integers(0, len(content)))
    more = draw(
        st.binary(max_size=20) | st.sampled_from([b"\xff\xfe", b"\0" * 50, b"[" * 1100, b"\n\n", b"{"])
    )
    taken = draw(st.integers(0, 30))
    return draw(
        st.sampled_from(
            [
                b"",
                more,
                content[:place],
                content[place:],
                content[:place] + more + content[place:],
                content[:place] + more + content[place + len(more) :],
                content[:place] + content[place + taken :],
                b"\xef\xbb\xbf" + content,
                content + content,
            ]
        )
    )
