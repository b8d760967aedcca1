"""The generated pages have all fields, commands and errors, as the code has them now."""

from __future__ import annotations

import re

import pytest
from sitegen import commands, fields, messages, outside

import alphadecay_dist
from alphadecay_dist.commands import COMMANDS
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import defaults, load_config
from tests.site import DOCS

FIELDS = fields.page()
ENTRY = re.compile(r"^`([\w.]+)`\n:   \*\*(.*?)\*\* · (.*)\n\n    (.+)$", re.MULTILINE)
ENTRIES = {key: (default, taken, text) for key, default, taken, text in ENTRY.findall(FIELDS)}
AT_LEAST = {
    key: int(found[1])
    for key, (_, taken, _) in ENTRIES.items()
    if (found := re.match(r"(\d+) (?:or more|to \d)", taken))
}
AT_MOST = {
    key: int(found[1])
    for key, (_, taken, _) in ENTRIES.items()
    if (found := re.match(r"\d+ to (\d+)", taken))
}


def test_every_field_has_a_default_a_range_and_a_meaning():
    assert set(ENTRIES) == set(defaults())
    assert ENTRIES["train.seq_len"] == ("256", "2 to 4294967296", "tokens a sequence.")
    assert ENTRIES["train.stop_after"][:2] == ("null", "1 or more, or `null`")
    assert ENTRIES["decay.interval"][:2] == ("500", "1 or more updates")
    assert ENTRIES["optimizer.betas"][:2] == (r"\[0.9, 0.999\]", r"two numbers in \[0, 1)")
    assert ENTRIES["optimizer.momentum"][:2] == ("0.95", r"a number in \[0, 1)")
    assert ENTRIES["data.lanes"][:2] == ("1", r"a divisor of train.global\_batch")
    assert ENTRIES["optimizer.muon_lr"][:2] == ("null", "0 or more, or `null`")
    assert ENTRIES["train.on_nonfinite"][:2] == ("stop", "`stop`, `skip`, `rollback`")
    assert ENTRIES["data.prepared"][:2] == ("null", "text, or `null`")
    assert ENTRIES["task.channels"][:2] == ("3", "1 or 3")


def accepted(key, value):
    task = ["model.task=vision"] if key.startswith("task.") else []
    try:
        load_config("demo", [*task, "optimizer.name=muon", f"{key}={value}"])
    except UserError as error:
        # in range, but not beside the other fields of the demo
        return "expected a divisor" in str(error) or "expected an even number" in str(error)
    return True


@pytest.mark.parametrize("key", AT_LEAST)
def test_a_range_is_what_is_checked(key):
    assert accepted(key, AT_LEAST[key])
    assert not accepted(key, AT_LEAST[key] - 1)


@pytest.mark.parametrize("key", AT_MOST)
def test_a_range_ends_where_the_check_does(key):
    assert accepted(key, AT_MOST[key])
    assert not accepted(key, AT_MOST[key] + 1)


def test_a_range_follows_the_check(monkeypatch):
    monkeypatch.setitem(load_config.__globals__["AT_LEAST"], "train.seq_len", 7)
    monkeypatch.setitem(load_config.__globals__["AT_MOST"], "train.seq_len", 9)
    assert fields.range_of("train.seq_len", "") == "7 to 9"


def test_the_api_has_all_that_pages_import():
    pages = [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
    lines = re.findall(
        r"^from alphadecay_dist.* import (.+)$", "\n".join(page.read_text() for page in pages), re.MULTILINE
    )
    shown = {name for line in lines for name in line.split(", ")} | set(alphadecay_dist.__all__) - {
        "spectral"
    }
    listed = re.findall(r"^::: [\w.]+\.(\w+)$", (DOCS / "reference" / "api.md").read_text(), re.MULTILINE)
    assert shown <= set(listed)


def test_every_command_has_its_options():
    text = commands.page()
    for name in COMMANDS:
        (section,) = re.findall(rf"^## alphadecay {name}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
        listed = set(re.findall(r"`(-[-\w]*)", section))
        usage = commands.parser_of(name).format_usage()
        assert set(re.findall(r"--\w+", usage)) <= listed, name
    assert "`--data.source" not in text
    assert "### alphadecay data prepare" in text


def test_all_errors_are_listed():
    text = messages.page()
    assert {message.room for message in messages.raised()} == set(messages.ROOMS)
    for message in messages.messages():
        assert f"| {messages.cells(message.text)[0]} |" in text, message
    assert len(messages.messages()) > 600


CODE = """
TAIL = "do g"
def _made(what: str) -> UserError:
    return UserError(f"made: {what}; mend it")
def _why(what):
    return f"why {what}; wait"
def all_of(x, text, error):
    raise UserError(f"a: found {x}, " "expected b; do c")
    raise KeyError("d")
    raise UserError(text)
    raise UserError(f"e: found f; {TAIL}")
    raise _made("broken" if x else "old")
    raise UserError(_why("not"))
    kind = UserError if x else RunError
    raise kind("g: remove it")
    ranks.require_equal("they differ", lines, "load one")
"""


def test_a_message_is_read_from_its_call(tmp_path, monkeypatch):
    monkeypatch.setattr(messages, "PACKAGE", tmp_path)
    file = tmp_path / "engines" / "a.py"
    file.parent.mkdir()
    file.write_text(CODE)
    found = list(messages.of_file(file))
    assert found[0] == messages.Message(
        "UserError", "engines", "engines/a.py", "a: found {}, expected b; do c"
    )
    assert [message.text for message in found if message.known] == [
        "a: found {}, expected b; do c",
        "e: found f; do g",
        "made: broken; mend it",
        "made: old; mend it",
        "why not; wait",
        "g: remove it",
        "they differ: {}; load one",
    ]
    assert [message.text for message in found if not message.known] == ["{}"]


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("a: found {}, expected b; do c", ("a: found …, expected b", "do c")),
        ("a: found {}, expected b", ("a: found …", "expected b")),
        ("a: {} is odd: remove it", ("a: … is odd", "remove it")),
        (
            "a: cannot be written: {}",
            ("a: cannot be written: …", "the end says why: mostly rights, or a full disk"),
        ),
        (
            "{}: found no whole checkpoint",
            ("…: found no whole checkpoint", "the directory has none, or the save was broken off"),
        ),
        ("nobody knows", ("nobody knows", "")),
    ],
)
def test_what_to_do_is_the_message_s_or_the_page_s_or_a_rule_s(text, cells):
    assert messages.cells(text) == cells


def test_links_lead_where_the_site_has_what_they_name():
    text = "[a](../slurm/table.yaml) [b](data.md#x) [c](../README.md) [d](https://a.b) [e](#f) ![g](a/h.png)"
    assert outside.rewritten(text, "docs/slurm.md") == (
        "[a](project/slurm/table.yaml.md) [b](data.md#x) [c](index.md) [d](https://a.b) [e](#f) ![g](a/h.png)"
    )
    assert outside.rewritten("[a](docs/data.md) [b](SECURITY.md)", "CONTRIBUTING.md") == (
        "[a](../data.md) [b](SECURITY.md)"
    )
    assert {"CHANGELOG.md", "slurm/table.yaml", "examples/alphadecay_simple.py"} <= set(outside.pages())
