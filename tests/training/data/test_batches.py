"""Documents -> sequences -> micro-batches: the same on any number of ranks, and taken up exactly."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data.batches import (
    IGNORE,
    EvaluationData,
    make_batch,
    micro_batch,
    validation_sequences,
)
from alphadecay_dist.training.data.corpus import Corpus, open_corpora
from alphadecay_dist.training.recipe import DataConfig, TrainConfig
from tests.training.corpora import number_tokenizer, numbered, write_files
from tests.training.sequences import SIZES, TRAIN, WORLDS, data_of, merged, sequences_of, updates_of


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    parts = [numbered(size, 100 * i) for i, size in enumerate(SIZES)]
    return write_files(tmp_path_factory.mktemp("data"), parts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"documents": {"epoch": 0, "file": 9, "row": 0, "taken": 0}}, "has file 9, expected one of 3"),
        ({"documents": {"epoch": 0, "file": 0, "row": -1, "taken": 0}}, "has -1 as row"),
        ({"documents": {"epoch": 0, "file": 0, "row": 10**30, "taken": 0}}, "as row"),
        ({"documents": [0, 0, 0, 0]}, "as epoch"),
        ({"carry": [64]}, "has the token 64, expected 63 at most"),
        ({"carry": "12"}, "as carry, expected a list"),
    ],
)
def test_a_position_that_cannot_be_is_one_line(folder, change, words):
    data = data_of(folder, pack=True)
    state = data.state()
    for wrong in ({**state, "0": {**state["0"], **change}}, {}):
        with pytest.raises(UserError, match=f"saved position in lane 0 .*{words if wrong else 'as 0'}"):
            data.load(wrong)
    data.load(state)
    assert data.next_update()


def test_the_largest_micro_batch_of_a_huge_batch_is_found_at_once():
    train = TrainConfig(global_batch=2**32, micro_batch=2**31 + 5)
    assert micro_batch(train, 2) == 2**31
    assert micro_batch(dataclasses.replace(train, micro_batch=2**31 - 1), 2) == 2**30
    assert micro_batch(TrainConfig(global_batch=4294967291, micro_batch=8), 1) == 1  # a prime


@settings(deadline=None, max_examples=30)
@given(
    lanes=st.sampled_from([1, 2, 3, 4, 6, 12]),
    world_size=st.sampled_from(WORLDS),
    shuffle=st.sampled_from([1, 3, 50]),
    pack=st.booleans(),
    seed=st.integers(0, 3),
)
def test_the_order_of_global_sequences_does_not_depend_on_the_ranks(
    folder, lanes, world_size, shuffle, pack, seed
):
    train = dataclasses.replace(TRAIN, seed=seed)
    options = {"train": train, "lanes": lanes, "shuffle": shuffle, "pack": pack}
    ranks = [data_of(folder, rank, world_size, **options) for rank in range(world_size)]
    assert updates_of(ranks, 16) == updates_of([data_of(folder, **options)], 16)  # past the epoch's end


@pytest.mark.parametrize("pack", [False, True])
def test_two_lanes_and_two_seeds_are_other_orders(folder, pack):
    orders = [
        updates_of([data_of(folder, pack=pack, lanes=lanes, train=dataclasses.replace(TRAIN, seed=seed))], 3)
        for lanes, seed in ((1, 0), (2, 0), (1, 1))
    ]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


@settings(deadline=None, max_examples=25)
@given(
    lanes=st.sampled_from([1, 2, 4, 12]),
    before=st.sampled_from(WORLDS),
    after=st.sampled_from(WORLDS),
    updates=st.integers(0, 18),
    shuffle=st.sampled_from([1, 4, 7, 100]),
    pack=st.booleans(),
)
def test_a_run_goes_on_exactly_also_on_other_ranks(folder, lanes, before, after, updates, shuffle, pack):
    options = {"lanes": lanes, "shuffle": shuffle, "pack": pack}
    saved = [data_of(folder, rank, before, **options) for rank in range(before)]
    updates_of(saved, updates)
    states = merged(saved)
    expected = updates_of(saved, 6)
    resumed = [data_of(folder, rank, after, **options) for rank in range(after)]
    for data in resumed:
        data.load(states)
    assert updates_of(resumed, 6) == expected


@pytest.mark.parametrize("pack", [False, True])
def test_every_update_of_two_epochs_can_be_taken_up(folder, pack):
    whole = data_of(folder, pack=pack)
    states, updates = [], []
    for _ in range(20):
        states.append(json.dumps(whole.state()))
        updates.append(sequences_of(whole.next_update()))
    for begin, state in enumerate(states[:-1]):
        data = data_of(folder, pack=pack)
        data.load(json.loads(state))
        assert [sequences_of(data.next_update()) for _ in range(2)] == updates[begin : begin + 2]


def test_padded_every_document_is_a_sequence_once_an_epoch(folder):
    train = dataclasses.replace(TRAIN, global_batch=100, micro_batch=10)
    (update,) = updates_of([data_of(folder, train=train)], 1)
    documents = [text for i, size in enumerate(SIZES) for text in numbered(size, 100 * i)]
    cut = [ids if len(ids) <= 8 else [*ids[:7], 1] for ids in number_tokenizer().encode(documents)]
    assert sorted(update) == sorted(cut)


def test_padded_sequences_end_with_eos_and_padding_is_ignored(folder):
    lengths = set()
    for batch in data_of(folder).next_update():
        assert batch.input_ids.shape == batch.labels.shape == (4, 8)
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
            length = int((labels != IGNORE).sum())
            lengths.add(length)
            assert labels[:length].equal(ids[:length])
            assert ids[length - 1] == 1
            assert 1 not in ids[: length - 1]
            assert ids[length:].tolist() == [0] * (8 - length)
            assert labels[length:].tolist() == [IGNORE] * (8 - length)
        assert batch.targets == sum(int((row != IGNORE).sum()) - 1 for row in batch.labels)
    assert 8 in lengths
    assert len(lengths) > 1


def test_packed_sequences_joined_are_the_documents_joined(folder):
    long = TrainConfig(global_batch=1, micro_batch=1, seq_len=64, seed=3)  # cuts no document
    documents = [ids for (ids,) in updates_of([data_of(folder, train=long)], 250)]
    packed = [ids for update in updates_of([data_of(folder, pack=True)], 31) for ids in update]
    assert {len(ids) for ids in packed} == {8}
    joined = [token for ids in packed for token in ids]
    assert len(joined) > 2 * sum(len(ids) for ids in documents[: sum(SIZES)]) > 200  # into the third epoch
    assert joined == [token for ids in documents for token in ids][: len(joined)]


def test_a_corpus_that_holds_exactly_one_batch_is_enough(tmp_path):
    folder = write_files(tmp_path, [numbered(12)])
    data = data_of(folder)
    data.check_size()
    assert len(sequences_of(data.next_update())) == 12


@pytest.mark.parametrize(("pack", "count"), [(False, 11), (True, 10)])
def test_a_corpus_too_short_for_one_batch_says_so(tmp_path, pack, count):
    folder = write_files(tmp_path, [numbered(count)])
    with pytest.raises(
        UserError, match=r"too short for one batch: found \d+ of the 12 sequences of 8 tokens"
    ):
        data_of(folder, pack=pack).check_size()


@pytest.mark.parametrize("pack", [False, True])
def test_checking_the_size_does_not_move_on(folder, pack):
    checked, other = data_of(folder, pack=pack), data_of(folder, pack=pack)
    other.next_update()
    checked.next_update()
    checked.check_size()
    assert checked.state() == other.state()
    assert sequences_of(checked.next_update()) == sequences_of(other.next_update())


@pytest.mark.parametrize("pack", [False, True])
def test_what_was_drawn_to_check_the_size_is_handed_out_and_not_read_again(folder, pack, monkeypatch):
    reads = []
    rows = Corpus.rows
    monkeypatch.setattr(Corpus, "rows", lambda *args: reads.append(args[1:]) or rows(*args))
    checked, other = data_of(folder, pack=pack), data_of(folder, pack=pack)
    checked.check_size()
    begun = list(reads)
    first = sequences_of(checked.next_update())
    assert reads == begun
    assert first == sequences_of(other.next_update())
    assert checked.state() == other.state()


def test_a_failure_in_the_middle_of_a_block_loses_nothing_when_asked_again(folder, monkeypatch):
    whole, broken = data_of(folder), data_of(folder)
    rows, left = Corpus.rows, [23]

    def failing(self, file, start):
        for item in rows(self, file, start):
            left[0] -= 1
            if left[0] == 0:
                raise UserError("data: gone")
            yield item

    monkeypatch.setattr(Corpus, "rows", failing)
    found = []
    while len(found) < 12:
        before = broken.state()
        try:
            found.append(sequences_of(broken.next_update()))
        except UserError:
            broken.load(before)
    assert left[0] < 0
    left[0] = 10**6
    assert found == [sequences_of(whole.next_update()) for _ in range(12)]


def test_digests_tell_sequences_apart_and_not_batches():
    sequences = [[5, 6], [5, 6, 0], [0], [6, 5]]
    whole = make_batch(sequences, 3, pad=0).digests()
    assert len(set(whole)) == 4
    assert {len(digest) for digest in whole} == {16}
    assert whole == [digest for ids in sequences for digest in make_batch([ids], 8, pad=7).digests()]


def evaluation_of(folder, rank=0, world_size=1, tokens=10**6, pack=False, seed=3):
    config = DataConfig(source=str(folder), holdout=4, shuffle=5, pack=pack)
    _, corpus = open_corpora(config)
    train = dataclasses.replace(TRAIN, seed=seed)
    tokenizer = number_tokenizer()
    drawn = validation_sequences(corpus, tokenizer, config, train, tokens)
    return EvaluationData(drawn, tokenizer.pad, train, rank, world_size)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("tokens", [1, 50, 10**6])
@pytest.mark.parametrize("world_size", WORLDS)
def test_the_evaluation_set_is_the_same_for_any_number_of_ranks(folder, pack, tokens, world_size):
    ranks = [list(evaluation_of(folder, rank, world_size, tokens, pack)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    found = [ids for batches in ranks for ids in sequences_of(batches) if ids]
    whole = [ids for ids in sequences_of(evaluation_of(folder, tokens=tokens, pack=pack)) if ids]
    assert sorted(found) == sorted(whole)
    held_out = sum(size // 4 for size in SIZES)
    assert pack or tokens < 10**6 or len(whole) == held_out


@pytest.mark.parametrize("tokens", [50, 10**6])
@pytest.mark.parametrize("world_size", WORLDS)
def test_micro_batches_of_an_evaluation_know_the_whole_batch_that_they_are_cut_from(
    folder, tokens, world_size
):
    batches = [b for rank in range(world_size) for b in evaluation_of(folder, rank, world_size, tokens)]
    (drawn,) = [[ids for ids in sequences_of(evaluation_of(folder, tokens=tokens)) if ids]]
    size = TRAIN.global_batch
    wholes = [sum(len(ids) - 1 for ids in drawn[i : i + size]) for i in range(0, len(drawn), size)]
    for whole in set(wholes):  # their parts, over all ranks, are all of it
        found = sum(batch.targets for batch in batches if batch.of_whole == whole)
        assert found == whole * wholes.count(whole)
    assert {batch.of_whole for batch in batches} == set(wholes)


def test_an_evaluation_takes_no_more_sequences_than_it_needs_and_no_seed(folder):
    found = [ids for ids in sequences_of(evaluation_of(folder, tokens=50)) if ids]
    predicted = [len(ids) - 1 for ids in found]
    assert sum(predicted) >= 50 > sum(predicted[:-1])
    assert found == [ids for ids in sequences_of(evaluation_of(folder, tokens=50, seed=4)) if ids]


def test_an_evaluation_is_the_same_each_time_it_is_read(folder):
    evaluation = evaluation_of(folder)
    assert sequences_of(evaluation) == sequences_of(evaluation)


def test_a_validation_set_without_a_sequence_is_a_users_error(tmp_path):
    folder = write_files(tmp_path, [["1 2 3"] * 4])
    assert sequences_of(evaluation_of(folder))
    with pytest.raises(UserError, match=r"validation set does not hold one sequence"):
        evaluation_of(folder, pack=True)  # one held-out document, shorter than a sequence
    with pytest.raises(UserError, match=r"has no document"):
        evaluation_of(write_files(tmp_path / "less", [["1 2 3"] * 3]))


@pytest.mark.parametrize(
    ("global_batch", "most", "world_size", "expected"),
    [
        (12, 4, 1, 4),
        (12, 5, 1, 4),
        (12, 100, 1, 12),
        (12, 4, 4, 3),
        (12, 1, 2, 1),
        (14, 4, 2, 1),
        (512, 128, 8, 64),
    ],
)
def test_the_micro_batch_is_the_largest_divisor_that_fits(global_batch, most, world_size, expected):
    assert micro_batch(TrainConfig(global_batch=global_batch, micro_batch=most), world_size) == expected


def test_ranks_that_do_not_divide_the_global_batch_are_refused():
    with pytest.raises(UserError, match=r"train\.global_batch: found 12, not divisible by 5 ranks"):
        micro_batch(TRAIN, 5)


def test_a_batch_of_nothing_is_all_padding():
    batch = make_batch([[], [5]], 3, pad=7)
    assert batch.input_ids.tolist() == [[7, 7, 7], [5, 7, 7]]
    assert batch.labels.tolist() == [[IGNORE] * 3, [5, IGNORE, IGNORE]]
    assert batch.targets == 0
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
