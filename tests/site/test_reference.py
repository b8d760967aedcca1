"""The generated pages have all fields, commands and errors, as the code has them now."""

from __future__ import annotations

import re

import pytest
from sitegen import commands, fields, messages, outside

from alphadecay_dist.commands import COMMANDS
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import defaults, load_config

FIELDS = fields.page()
ENTRY = re.compile(r"^`([\w.]+)`\n:   \*\*(.*?)\*\* · (.*)\n\n    (.+)$", re.MULTILINE)
ENTRIES = {key: (default, taken, text) for key, default, taken, text in ENTRY.findall(FIELDS)}
AT_LEAST = {
    key: int(found[1])
    for key, (_, taken, _) in ENTRIES.items()
    if (found := re.match(r"(\d+) or more", taken))
}


def test_every_field_has_a_default_a_range_and_a_meaning():
    assert set(ENTRIES) == set(defaults())
    assert ENTRIES["train.seq_len"] == ("256", "2 or more", "tokens a sequence.")
    assert ENTRIES["train.stop_after"][:2] == ("null", "1 or more, or `null`")
    assert ENTRIES["decay.interval"][:2] == ("500", "1 or more updates")
    assert ENTRIES["optimizer.betas"][:2] == (r"\[0.9, 0.999\]", r"two numbers in \[0, 1)")
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


def test_a_range_follows_the_check(monkeypatch):
    assert fields.range_of("train.seq_len", "") == "2 or more"
    monkeypatch.setitem(load_config.__globals__["AT_LEAST"], "train.seq_len", 7)
    assert fields.range_of("train.seq_len", "") == "7 or more"


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
    assert {message.room for message in messages.messages()} <= set(messages.ROOMS) | {"cli.py"}
    for message in messages.messages():
        assert messages.shown(messages.split(message.text)[0]) in text, message
    assert len(messages.messages()) > 400


def test_a_message_is_read_from_its_call(tmp_path, monkeypatch):
    monkeypatch.setattr(messages, "PACKAGE", tmp_path)
    file = tmp_path / "engines" / "a.py"
    file.parent.mkdir()
    file.write_text(
        'raise UserError(f"a: found {x}, " "expected b; do c")\nraise ValueError("d")\nUserError(text)\n'
    )
    (found,) = messages.of_file(file)
    assert found == messages.Message("UserError", "engines", "engines/a.py", "a: found {}, expected b; do c")
    assert messages.split(found.text) == ("a: found {}, expected b", "do c")


def test_links_lead_where_the_site_has_what_they_name():
    text = "[a](../slurm/table.yaml) [b](data.md#x) [c](../README.md) [d](https://a.b) [e](#f) ![g](a/h.png)"
    assert outside.rewritten(text, "docs/slurm.md") == (
        "[a](project/slurm/table.yaml.md) [b](data.md#x) [c](index.md) [d](https://a.b) [e](#f) ![g](a/h.png)"
    )
    assert outside.rewritten("[a](docs/data.md) [b](SECURITY.md)", "CONTRIBUTING.md") == (
        "[a](../data.md) [b](SECURITY.md)"
    )
    assert {"CHANGELOG.md", "slurm/table.yaml", "examples/alphadecay_simple.py"} <= set(outside.pages())
