"""Every message of docs/troubleshooting.md is one that the code has, and the important ones are all on it."""

from __future__ import annotations

import ast
import re

import pytest
from sitegen import messages

from tests.site import DOCS
from tests.sources import TREES

PAGE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(.+?)` \|", PAGE, re.MULTILINE)  # what stands first in a row is a message
# Whoever meets these cannot know from the line alone where to look: how ranks are started, runs that cannot
# go on, and what a newcomer's first call may meet.
KINDS = {"LaunchError", "RunError", "VersionError"}
FILES = {
    "checkpoint/reader.py",
    "engines/given.py",
    "engines/native/dtensor.py",
    "engines/native/host.py",
    "engines/zero/host.py",
    "params/coverage.py",
    "params/groups.py",
    "training/batch_size.py",
    "training/changes.py",
    "training/process/lock.py",
    "training/resume.py",
}
BARE = {"--resume: ..."}  # says what another line of the page says, behind its option


def texts():
    """All texts of the package, as the page writes them."""
    found = (
        messages.template(node)
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.expr)
    )
    return {dotted(text) for text in found if text}


def dotted(text):
    """A template as the page writes it."""
    return re.sub(r"(\{\})+", "...", text)


TEXTS = "\n".join(texts())


@pytest.mark.parametrize("message", ROWS)
def test_a_message_of_the_page_is_one_of_the_code(message):
    assert message in TEXTS


def test_the_important_messages_are_on_the_page():
    important = {
        dotted(message.text)
        for message in messages.messages()
        if message.kind in KINDS or message.file in FILES
    }
    missing = [text for text in important - BARE if not any(text.startswith(row) for row in ROWS)]
    assert missing == []
    assert len(important) > 55


def test_the_page_ends_with_all_of_them():
    assert PAGE.endswith("<!-- generated: messages -->\n")
