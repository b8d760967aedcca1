"""A node that cannot read the run's documents."""

from __future__ import annotations

import time

import pytest

from alphadecay_dist.doctor.source import fault_of_data
from alphadecay_dist.training.recipe import Config, DataConfig
from alphadecay_dist.training.tasks.language.data import Text
from tests.doctor.ranks import doctor
from tests.training.runs import launch


def fault_of_text(config, seconds=60):
    return fault_of_data(config, lambda: Text(Config(data=config), 32_000), seconds)


def test_documents_that_can_be_read_are_no_fault(prepared):
    assert fault_of_text(DataConfig()) is None
    assert fault_of_text(DataConfig(prepared=str(prepared))) is None


@pytest.mark.parametrize(
    ("name", "text"), [("broken.json", "{"), ("empty.txt", "\n\n"), ("other.jsonl", '{"a": 1}\n')]
)
def test_files_without_a_readable_document_are_named(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert str(path) in fault_of_text(DataConfig(str(path), str(path)))


def test_a_source_that_does_not_answer_is_reported_in_time():
    begin = time.monotonic()
    found = fault_of_data(DataConfig("c4"), lambda: time.sleep(30), 0.2)
    assert found == "data.source c4: no sample within 0.2 s"
    assert time.monotonic() - begin < 10


def test_what_breaks_the_reading_is_the_fault():
    def broken():
        raise MemoryError("too\nlarge")

    assert fault_of_data(DataConfig(), broken, 60) == "data: demo: MemoryError: too large"


@pytest.mark.ranks
def test_each_node_that_cannot_read_is_named_once(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text("{")
    done = doctor(tmp_path, 2, f"--data.source={path}")
    assert set(done.codes.values()) == {2}, done.printed
    assert ("data", ["n0"], [0]) in done.problems()
    assert f"BAD   n0 (rank 0): data: found data: {path}" in done.printed[0]


@pytest.mark.launcher
def test_a_hub_that_cannot_be_reached_is_bad(tmp_path):
    code, printed = launch("alphadecay", "doctor", "--recipe", "llama_1b", "--output_dir", tmp_path / "run")
    assert code == 2, printed
    assert "data: found data.source c4: the hub does not give allenai/c4" in printed
    assert "1 of 1 nodes bad" in printed
