"""JSON text -> records, read line by line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from alphadecay_dist.errors import shown

EXCERPT = 30  # characters before and after a fault

WHITESPACE = re.compile(r"[ \t\n\r]*")


def json_records(lines: Iterator[str]) -> Iterator[Any]:
    """The values of a file one after the other, or the items of its one list.

    A string in such a list becomes an object with the field ``text``.

    Raises:
        JSONDecodeError: at the first value that is not JSON.
    """
    text = _JsonText(lines)
    if not text.passed("["):
        while text.next():
            yield text.value()
        return
    ended = text.passed("]")
    while not ended:
        item = text.value()
        yield {"text": item} if isinstance(item, str) else item
        ended = text.passed("]")
        if not (ended or text.passed(",")):
            raise text.fault("Expecting ',' delimiter")
    if text.next():
        raise text.fault("Expecting nothing after a list")


class _JsonText:
    """JSON that is read line by line: usually one value per line, but values may span or share lines."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._text = ""
        self._position = 0
        # Numbers are not used, and an integer may have any number of digits.
        self._decode = json.JSONDecoder(parse_int=float).raw_decode

    def next(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            self._position = _past_whitespace(self._text, self._position)
            if self._position < len(self._text):
                return self._text[self._position]
            line = next(self._lines, "")
            if not line:
                return ""
            self._text, self._position = line, 0

    def passed(self, character: str) -> bool:
        """Whether a character comes next; if so, move past it."""
        found = self.next() == character
        self._position += found
        return found

    def value(self) -> Any:
        """The next value.

        Raises:
            JSONDecodeError: there is no valid value.
        """
        self.next()
        while True:
            try:
                value, self._position = self._decode(self._text, self._position)
                return value
            except json.JSONDecodeError as error:
                # Double the text: a value of many lines is then parsed a few times, not once per line.
                more = _at_end(error) and self._taken(len(self._text) - self._position)
                if not more:
                    raise
                self._text, self._position = self._text[self._position :] + more, 0

    def fault(self, what: str) -> json.JSONDecodeError:
        """An error at this position."""
        return json.JSONDecodeError(what, self._text, self._position)

    def _taken(self, characters: int) -> str:
        """The next lines, with at least this many characters together."""
        taken, size = [], 0
        while size < characters and (line := next(self._lines, "")):
            taken.append(line)
            size += len(line)
        return "".join(taken)


def _past_whitespace(text: str, position: int) -> int:
    found = WHITESPACE.match(text, position)
    return found.end() if found else position


def _at_end(error: json.JSONDecodeError) -> bool:
    """Whether a value is valid up to the end of the text."""
    return _past_whitespace(error.doc, error.pos) == len(error.doc)


def not_json(error: json.JSONDecodeError) -> str:
    """What is wrong with a value."""
    if _at_end(error):
        return "is not whole: the file ends in the middle of a JSON value"
    excerpt = error.doc[max(error.pos - EXCERPT, 0) : error.pos + EXCERPT]
    return f"is not JSON: {error.msg} in {shown(excerpt)}"
