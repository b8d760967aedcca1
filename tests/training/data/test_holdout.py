"""Which documents are held out for validation: in each file, or over files that are small."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data.corpus import DocumentLane, open_corpora
from alphadecay_dist.training.recipe import DataConfig
from tests.training.corpora import numbered, open_all, write_files


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4), holdout=st.integers(2, 9))
def test_training_and_validation_are_disjoint_and_together_everything(tmp_path_factory, sizes, holdout):
    parts = [numbered(size, 100 * i) for i, size in enumerate(sizes)]
    source = write_files(tmp_path_factory.mktemp("holdout"), parts)
    train, validation = open_all(source, holdout=holdout)
    joined = [text for part in parts for text in part]
    counted = parts if max(sizes) >= holdout else [joined]
    assert validation == [text for part in counted for text in part[holdout - 1 :: holdout]]
    assert sorted(train + validation) == sorted(joined)


def test_validation_files_of_their_own_leave_the_training_files_whole(tmp_path):
    train = write_files(tmp_path / "train", [numbered(300)])
    validation = write_files(tmp_path / "validation", [numbered(5, 300)])
    assert open_all(train, validation=str(validation)) == (numbered(300), numbered(5, 300))


def test_many_small_files_have_a_validation_set(tmp_path):
    source = write_files(tmp_path, [[text] for text in numbered(300)])
    train, validation = open_all(source)
    assert validation == [numbered(300)[i] for i in (99, 199, 299)]
    assert sorted(train + validation) == sorted(numbered(300))


def test_one_file_of_enough_rows_counts_as_it_always_did(tmp_path):
    source = write_files(tmp_path, [["x"] * 9, numbered(10), ["y"] * 9])
    assert open_all(source, holdout=10)[1] == [numbered(10)[9]]


@pytest.mark.parametrize("lanes", [1, 4])
def test_lanes_over_small_files_read_all_but_what_is_held_out(tmp_path, lanes):
    source = write_files(tmp_path, [numbered(3, 3 * i) for i in range(20)])
    corpus, _ = open_corpora(DataConfig(source=str(source), holdout=20))
    read = []
    for lane in (DocumentLane(corpus, lane, lanes, 0, 5) for lane in range(lanes)):
        while (text := lane.next()) and lane.cursor.epoch == 0:
            read.append(text)
    assert sorted(read) == sorted(text for i, text in enumerate(numbered(60)) if i % 20 != 19)


def first_of_validation(source, **options):
    _, validation = open_corpora(DataConfig(source=str(source), **options))
    return DocumentLane(validation, 0, 1, 0, 3).next()


def test_too_few_rows_for_a_validation_set_are_told_with_what_helps(tmp_path):
    source = write_files(tmp_path, [numbered(5), numbered(15, 5)])
    words = r"every 50th document of it.*has no document; it has 20 rows: set data\.holdout to 20 at most"
    with pytest.raises(UserError, match=words):
        first_of_validation(source, holdout=50)
    assert first_of_validation(source, holdout=20) == numbered(20)[19]


@pytest.mark.parametrize("parts", [[["1"]], [["1", ""] * 10]])
def test_where_another_holdout_may_not_help_other_files_do(tmp_path, parts):
    with pytest.raises(UserError, match=r"has no document; use more documents .*give data\.validation"):
        first_of_validation(write_files(tmp_path, parts), holdout=2)
