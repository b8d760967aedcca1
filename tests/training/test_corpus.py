"""Files -> documents: kinds of files, holdout, lanes, and positions that can be taken up."""

from __future__ import annotations

import gzip
import json
import math
import random
import socket

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from alphadecay_dist.errors import UserError
from alphadecay_dist.training import corpus as corpora
from alphadecay_dist.training.corpus import Cursor, DocumentLane, find_files, open_corpora
from alphadecay_dist.training.recipe import DataConfig
from tests.training.corpora import numbered, open_all, texts_of, write_files, write_lines
from tests.training.fake_hub import README

TEXTS = ["one", "two\nlines", "three", "four", "five"]


def write_txt(path):
    path.write_text("\n\n".join(TEXTS) + "\n\n\n")


def write_json(path):
    path.write_text(json.dumps([{"text": text, "id": i} for i, text in enumerate(TEXTS)]))


def write_jsonl(path):
    write_lines(path, ({"id": i, "text": text} for i, text in enumerate(TEXTS)))


def write_parquet(path):
    parquet.write_table(pyarrow.table({"text": TEXTS, "id": list(range(5))}), path, row_group_size=2)


KINDS = {
    "a.txt": write_txt,
    "a.json": write_json,
    "a.jsonl": write_jsonl,
    "a.json.gz": write_jsonl,
    "a.jsonl.gz": write_jsonl,
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_its_documents_from_any_row_on(tmp_path, name):
    KINDS[name](tmp_path / name)
    corpus, _ = open_corpora(DataConfig(source=str(tmp_path / name)))
    assert corpus.num_files == 1
    for start in range(6):
        assert list(corpus.rows(0, start)) == list(enumerate(TEXTS))[start:]


def test_a_gzipped_text_file_gives_its_paragraphs(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\n\n".join(TEXTS).encode()))
    assert open_all(tmp_path / "a.txt.gz")[0] == TEXTS


def test_paragraphs_of_a_file_with_dos_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\n\r\nthree")
    assert open_all(tmp_path / "a.txt")[0] == ["one\ntwo", "three"]


def test_documents_without_text_are_left_out_and_keep_their_row(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", ({"text": text} for text in ["a", "", "  \n", " b "]))
    corpus, _ = open_corpora(DataConfig(source=str(path)))
    assert list(corpus.rows(0, 0)) == [(0, "a"), (3, "b")]


@pytest.mark.parametrize("source", ["", "/*.jsonl", "/part-0[0-2].jsonl", "/**/*.jsonl"])
def test_a_directory_or_a_glob_gives_all_its_files(tmp_path, source):
    folder = write_files(tmp_path / "data", [numbered(3), numbered(2, 3), numbered(4, 5)])
    (folder / "README.md").write_text("not data")
    corpus, _ = open_corpora(DataConfig(source=f"{folder}{source}"))
    assert corpus.num_files == 3
    assert texts_of(corpus) == numbered(9)


def test_a_directory_is_read_to_its_depths(tmp_path):
    write_files(tmp_path / "data" / "b" / "c", [numbered(3)])
    write_files(tmp_path / "data" / "a", [numbered(3, 3)])
    assert sorted(open_all(tmp_path / "data")[0]) == sorted(numbered(6))


@pytest.mark.parametrize("name", ["a[1].txt", "a*.txt", "a?.txt", "a b.txt", "ä.txt", ".hidden.txt"])
def test_a_name_is_taken_as_it_is(tmp_path, name):
    (tmp_path / "a1.txt").write_text("not this one")
    (tmp_path / name).write_text("this one")
    assert open_all(tmp_path / name)[0] == ["this one"]


def test_another_text_field(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"body": "one", "text": "no"}])
    assert open_all(path, text_field="body")[0] == ["one"]


@pytest.mark.parametrize(
    "record", [{"body": "one", "id": 1}, {"body": "one", "text": None}, {"text": 3, "body": ""}]
)
def test_a_row_without_text_names_file_row_and_fields(tmp_path, record):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "fine", **record}, record][-1:])
    with pytest.raises(UserError) as caught:
        open_all(path)
    assert f"{path}: row 0 has no text in 'text' (its fields: {', '.join(record)})" in str(caught.value)
    assert "data.text_field" in str(caught.value)


def test_files_of_several_kinds_are_refused(tmp_path):
    write_txt(tmp_path / "a.txt")
    write_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"expected files of one kind of \.txt"):
        find_files(str(tmp_path))


@pytest.mark.parametrize("name", ["none.txt", "none*", "empty", "empty/*.txt"])
def test_what_is_not_there_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        find_files(str(tmp_path / name))
    assert f"data: {tmp_path / name}: no such file" in str(caught.value)


def test_a_file_of_no_known_kind_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text\none")
    with pytest.raises(UserError, match=r"a\.csv: expected files of one kind of \.txt, \.json"):
        find_files(str(tmp_path / "a.csv"))


WHOLE = gzip.compress(b"".join(b'{"text": "%d"}\n' % random.Random(i).getrandbits(64) for i in range(2000)))
BROKEN = {
    "cut.jsonl": b'{"text": "x"}\n{"text": ',
    "words.json": b"just words",
    "cut.json.gz": WHOLE[:-100],
    "flipped.json.gz": WHOLE[:500] + bytes(60) + WHOLE[560:],
    "plain.json.gz": b'{"text": "x"}\n',
    "empty.json.gz": b"",
    "cut.parquet": b"PAR1xxxxPAR1",
    "empty.parquet": b"",
    "latin.txt": b"caf\xe9",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(UserError) as caught:
        open_all(tmp_path / name)
    assert str(caught.value).startswith(f"data: {tmp_path / name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_json_file_without_a_byte_is_a_users_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{name}: has no document; give files with text"):
        open_all(tmp_path / name)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4), holdout=st.integers(2, 9))
def test_training_and_validation_are_disjoint_and_together_everything(tmp_path_factory, sizes, holdout):
    parts = [numbered(size, 100 * i) for i, size in enumerate(sizes)]
    source = write_files(tmp_path_factory.mktemp("holdout"), parts)
    train, validation = open_all(source, holdout=holdout)
    assert validation == [text for part in parts for text in part[holdout - 1 :: holdout]]
    assert sorted(train + validation) == sorted(text for part in parts for text in part)


def test_validation_files_of_their_own_leave_the_training_files_whole(tmp_path):
    train = write_files(tmp_path / "train", [numbered(300)])
    validation = write_files(tmp_path / "validation", [numbered(5, 300)])
    assert open_all(train, validation=str(validation)) == (numbered(300), numbered(5, 300))


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


def test_an_empty_validation_set_is_told_from_the_training_set(tmp_path):
    _, validation = open_corpora(DataConfig(source=str(write_files(tmp_path, [numbered(20)])), holdout=50))
    with pytest.raises(UserError, match=r"every 50th document of it.*has no document.*data\.holdout"):
        lanes_of(validation, 1)[0].next()


def test_a_folder_laid_out_like_c4_is_streamed_as_c4(tmp_path, monkeypatch):
    (tmp_path / "en").mkdir()
    (tmp_path / "README.md").write_text(README)
    records = [
        {"text": text, "timestamp": f"2019-04-25T12:57:{i:02d}Z", "url": f"https://example.org/{i}"}
        for i, text in enumerate(numbered(30))
    ]
    for i in range(2):
        write_lines(tmp_path / "en" / f"c4-train.0000{i}-of-00002.json.gz", records[i * 10 : i * 10 + 10])
    write_lines(tmp_path / "en" / "c4-validation.00000-of-00001.json.gz", records[20:])
    monkeypatch.setattr(corpora, "C4", (str(tmp_path), "en"))
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


def test_local_files_ask_nothing_of_the_network(tmp_path, monkeypatch):
    asked = []

    def refuse(host, *_, **__):
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    folder = write_files(tmp_path / "texts", [numbered(5), numbered(5, 100)])
    assert open_all(folder, holdout=5) != ([], [])
    assert asked == []
