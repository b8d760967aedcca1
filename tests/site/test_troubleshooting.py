"""Every message of docs/troubleshooting.md is one that the code has, and the important ones are all on it."""

from __future__ import annotations

import ast

import pytest
from sitegen import advice, messages
from sitegen.texts import defined, module_of, plain

from tests.site import DOCS
from tests.sources import TREES

PAGE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
ROWS = [message for message, _ in messages.explained()]
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


# Errors that have no words of their own, by file: what they pass on is listed where it is first said.
PASSED_ON = {
    "checkpoint/foreign_files.py": "why a file of weights cannot be taken",
    "checkpoint/manifest.py": "a format that is newer",
    "commands/spectrum.py": "of the rule of tuned weights",
    "commands/spectrum_rows.py": "of a matrix",
    "decay/checks.py": "of spectral/estimator.py",
    "doctor/examine.py": "of a rank's options, or what the doctor found",
    "doctor/roll_call.py": "of the roll call",
    "engines/zero/host.py": "of the engine's config",
    "engines/zero/training.py": "of the engine's config",
    "sharding/planning.py": "of a weight",
    "training/config.py": "of a section",
    "training/data/tokenizer_json.py": "of the tokenizers library",
    "training/muon.py": "of the engine's config",
    "training/process/preemption.py": "of another rank",
    "training/run.py": "of whatever fails while it trains",
}
RAISED = {  # what is raised beside errors, and why no user reads it
    "AttributeError": "as Python's own",
    "IndexError": "of a list that is counted by ourselves",
    "Preempted": "ends a run that was asked to stop",
    "known_to_all": "a LaunchError, or a UserError where all ranks know",
    "kind": "another rank's error again, or what require_equal was given",
    "text.fault": "the json module's error, which a reader takes up",
}


def texts():
    """All texts of the package, as the page writes them."""
    found = (
        text
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.expr)
        for text in plain(node)
    )
    return {messages.dotted(text) for text in found}


TEXTS = "\n".join(texts() | {messages.dotted(message.text) for message in messages.messages()})


@pytest.mark.parametrize("message", ROWS)
def test_a_message_of_the_page_is_one_of_the_code(message):
    assert message in TEXTS


def test_the_important_messages_are_on_the_page():
    important = {
        messages.dotted(message.text)
        for message in messages.messages()
        if message.kind in KINDS or (message.file in FILES and message.kind == "UserError")
    }
    missing = [text for text in important - BARE if not any(text.startswith(row) for row in ROWS)]
    assert missing == []
    assert len(important) > 55


def test_every_message_says_what_to_do_or_the_page_does():
    assert [message for message in messages.messages() if not messages.cells(message.text)[1]] == []


def test_every_rule_is_needed():
    needed = {
        advice.from_rules(messages.dotted(message.text))
        for message in messages.messages()
        if not messages.split(message.text)[1].strip(" .{}")
    }
    assert {do for _, do in advice.RULES} <= needed


def test_what_has_no_words_of_its_own_is_known():
    assert {message.file for message in messages.raised() if not message.known} == set(PASSED_ON)


def is_maker(name, module):
    """Whether a function of the package returns the error that is raised."""
    _, function = defined(name, module) or (None, None)
    return isinstance(function, ast.FunctionDef) and messages.makes(function)


def test_whatever_is_raised_is_read():
    """A new kind of error is in ERRORS, or here with the reason."""
    found = set()
    for path in TREES:
        module = module_of(path)
        raised = (node.exc for node in ast.walk(module.tree) if isinstance(node, ast.Raise))
        names = {
            ast.unparse(call.func).removeprefix("self.") for call in raised if isinstance(call, ast.Call)
        }
        found |= {name.removeprefix("argparse.") for name in names if not is_maker(name, module)}
    assert found - messages.ERRORS == set(RAISED)


def test_the_page_ends_with_all_of_them():
    assert PAGE.endswith("<!-- generated: messages -->\n")
