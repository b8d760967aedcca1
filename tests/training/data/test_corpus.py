"""Files -> documents: lanes, and positions that can be taken up."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data import hub
from alphadecay_dist.training.data.corpus import Cursor, DocumentLane, open_corpora
from alphadecay_dist.training.recipe import DataConfig
from tests.training.corpora import numbered, open_all, texts_of, write_files, write_lines
from tests.training.fake_hub import README


def test_the_demos_training_and_validation_texts_are_disjoint():
    train, validation = open_all("demo")
    assert len(train) > 1000
    assert validation
    assert not set(train) & set(validation)


def lanes_of(corpus, lanes, shuffle=3, seed=0):
    return [DocumentLane(corpus, lane, lanes, seed, shuffle) for lane in range(lanes)]


def epochs_of(lane, count):
    """The lane's documents of each of its first epochs."""
    epochs = [[] for _ in range(count)]
    while True:
        text = lane.next()
        if lane.cursor.epoch >= count:
            return epochs
        epochs[lane.cursor.epoch].append(text)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(7, 13), min_size=1, max_size=6),
    lanes=st.integers(1, 7),
    shuffle=st.sampled_from([1, 2, 5, 100]),
)
def test_each_document_is_read_once_an_epoch_by_one_lane(tmp_path_factory, sizes, lanes, shuffle):
    parts = [numbered(size, 100 * i) for i, size in enumerate(sizes)]
    corpus, _ = open_corpora(
        DataConfig(source=str(write_files(tmp_path_factory.mktemp("lanes"), parts)), holdout=1000)
    )
    read = [epochs_of(lane, 3) for lane in lanes_of(corpus, lanes, shuffle)]
    for epoch in range(3):
        assert sorted(text for lane in read for text in lane[epoch]) == sorted(
            text for part in parts for text in part
        )


@pytest.fixture(scope="module")
def two_files(tmp_path_factory):
    folder = write_files(tmp_path_factory.mktemp("two"), [numbered(40), numbered(40, 40)])
    return open_corpora(DataConfig(source=str(folder), holdout=1000))[0]


def test_epochs_and_seeds_differ_in_order(two_files):
    (lane,) = lanes_of(two_files, 1, shuffle=100)
    epochs = epochs_of(lane, 3)
    (other,) = lanes_of(two_files, 1, shuffle=100, seed=1)
    orders = [*epochs, *epochs_of(other, 1)]
    assert all(sorted(order) == sorted(numbered(80)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert numbered(80) not in orders


def test_the_order_of_files_changes_with_the_epoch(tmp_path):
    corpus, _ = open_corpora(DataConfig(source=str(write_files(tmp_path, [[str(i)] for i in range(6)]))))
    (lane,) = lanes_of(corpus, 1, shuffle=1)
    assert len({tuple(epoch) for epoch in epochs_of(lane, 4)}) == 4


def test_without_shuffling_a_file_is_read_in_its_order(tmp_path):
    corpus, _ = open_corpora(DataConfig(source=str(write_files(tmp_path, [numbered(30)])), holdout=1000))
    (lane,) = lanes_of(corpus, 1, shuffle=1)
    assert epochs_of(lane, 2) == [numbered(30), numbered(30)]


def test_a_shuffle_mixes_whole_blocks_and_nothing_else(tmp_path):
    corpus, _ = open_corpora(DataConfig(source=str(write_files(tmp_path, [numbered(30)])), holdout=1000))
    (lane,) = lanes_of(corpus, 1, shuffle=10)
    (epoch,) = epochs_of(lane, 1)
    for begin in (0, 10, 20):
        assert sorted(epoch[begin : begin + 10]) == sorted(numbered(10, begin))
        assert epoch[begin : begin + 10] != numbered(10, begin)


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [1, 7, 20, 100])
def test_a_lane_goes_on_exactly_from_any_cursor(two_files, lanes, shuffle):
    for lane, other in zip(
        lanes_of(two_files, lanes, shuffle), lanes_of(two_files, lanes, shuffle), strict=True
    ):
        total = math.ceil(2.5 * 80 / lanes)  # into the third epoch: every place in blocks, files and epochs
        cursors, read = [], []
        for _ in range(total):
            cursors.append(lane.state())
            read.append(lane.next())
        for position in range(0, total, 3):
            other.seek(Cursor(**json.loads(json.dumps(cursors[position]))))
            assert [other.next() for _ in read[position : position + 25]] == read[position : position + 25]


def test_a_lane_without_a_document_is_named(tmp_path):
    corpus, _ = open_corpora(DataConfig(source=str(write_files(tmp_path, [numbered(2)]))))
    with pytest.raises(UserError, match="lane 2 of 3 has no document; use more documents"):
        lanes_of(corpus, 3)[2].next()


@pytest.fixture
def c4(tmp_path, monkeypatch):
    """A folder laid out like C4, in its place."""
    (tmp_path / "en").mkdir()
    (tmp_path / "README.md").write_text(README)
    records = [
        {"text": text, "timestamp": f"2019-04-25T12:57:{i:02d}Z", "url": f"https://example.org/{i}"}
        for i, text in enumerate(numbered(30))
    ]
    for i in range(2):
        write_lines(tmp_path / "en" / f"c4-train.0000{i}-of-00002.json.gz", records[i * 10 : i * 10 + 10])
    write_lines(tmp_path / "en" / "c4-validation.00000-of-00001.json.gz", records[20:])
    monkeypatch.setattr(hub, "C4", (str(tmp_path), "en"))
    return tmp_path


@pytest.mark.usefixtures("c4")
def test_a_folder_laid_out_like_c4_is_streamed_as_c4():
    train, validation = open_corpora(DataConfig(source="c4", text_field="ignored"))
    assert (train.num_files, validation.num_files) == (2, 1)
    assert texts_of(train) == numbered(20)
    assert texts_of(validation) == numbered(10, 20)
    assert list(train.rows(1, 8)) == [(8, numbered(20)[18]), (9, numbered(20)[19])]


def test_c4_without_the_hub_is_one_clear_line(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        open_corpora(DataConfig(source="c4"))
    assert str(caught.value).startswith("data.source c4: the hub does not give allenai/c4")
    assert "without network give local files: --data.source=PATH" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cache_of_the_hub_that_cannot_be_written_is_named(c4):
    (c4 / "file").write_text("")
    program = (
        "import sys\n"
        "from alphadecay_dist.training.data import hub\n"
        "hub.C4 = (sys.argv[1], 'en')\n"
        "hub.open_c4('train')\n"
    )
    environment = {**os.environ, "HF_HOME": str(c4 / "file" / "x")}
    command = [sys.executable, "-c", program, str(c4)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "UserError: data.source c4: the hub's cache cannot be written: Not a directory: " in done.stderr
    assert "set HF_HOME to a directory that can be" in done.stderr
