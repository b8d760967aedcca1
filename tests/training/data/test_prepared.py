"""A corpus that was tokenized once gives the same sequences by number, on any ranks, from any update on."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist.cli import main
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data import prepare as preparing
from alphadecay_dist.training.data.batches import (
    TrainingData,
    open_data,
    validation_sequences,
)
from alphadecay_dist.training.data.prepare import prepare_corpus
from alphadecay_dist.training.data.prepared import (
    PreparedSequences,
    dtype_for,
    open_prepared,
    read_manifest,
)
from alphadecay_dist.training.recipe import DataConfig, TrainConfig
from tests.json_trees import JSON, places, put
from tests.training.corpora import number_tokenizer, numbered, texts_of, write_files
from tests.training.preparations import VOCABULARY, recipe
from tests.training.sequences import TRAIN, WORLDS, merged, sequences_of, updates_of


def data_of(folder, rank=0, world_size=1, train=TRAIN, **options):
    config = DataConfig(prepared=str(folder), **options)
    source, _ = open_data(config)
    return TrainingData(source, number_tokenizer(), config, train, rank, world_size)


def all_sequences(folder, pack):
    source, _ = open_prepared(str(folder))
    sequences = PreparedSequences(source, number_tokenizer(), TRAIN.seq_len, pack)
    return [sequences[number] for number in range(len(sequences))]


def test_the_shards_hold_every_document_once(prepared, texts):
    assert len(read_manifest(prepared).train) > 3
    for split, corpus in zip(open_prepared(str(prepared)), open_data(recipe(texts).data), strict=True):
        found = [split.document(number).tolist() for number in range(split.documents)]
        assert sorted(found) == sorted(number_tokenizer().encode(texts_of(corpus)))
        joined = [token for ids in found for token in ids]
        assert split.joined(0, split.tokens).tolist() == joined
        assert split.joined(90, 215).tolist() == joined[90:215]


@pytest.mark.parametrize("pack", [False, True])
def test_sequences_are_documents_or_cut_from_the_joined_ones(prepared, pack):
    source, _ = open_prepared(str(prepared))
    documents = [source.document(number).tolist() for number in range(source.documents)]
    joined = [token for ids in documents for token in ids]
    if pack:
        expected = [joined[i : i + 8] for i in range(0, len(joined) - 7, 8)]
    else:
        expected = [ids if len(ids) <= 8 else [*ids[:7], 1] for ids in documents]
    assert all_sequences(prepared, pack) == expected


@settings(deadline=None, max_examples=20)
@given(
    lanes=st.sampled_from([1, 2, 3, 4, 6, 12]),
    world_size=st.sampled_from(WORLDS),
    pack=st.booleans(),
    seed=st.integers(0, 3),
)
def test_the_order_does_not_depend_on_the_ranks(prepared, lanes, world_size, pack, seed):
    options = {"train": dataclasses.replace(TRAIN, seed=seed), "lanes": lanes, "pack": pack}
    ranks = [data_of(prepared, rank, world_size, **options) for rank in range(world_size)]
    assert updates_of(ranks, 16) == updates_of([data_of(prepared, **options)], 16)


@settings(deadline=None, max_examples=20)
@given(
    lanes=st.sampled_from([1, 2, 3, 4, 6, 12]),
    pack=st.booleans(),
    parts=st.lists(st.tuples(st.sampled_from(WORLDS), st.integers(0, 5)), min_size=1, max_size=6),
)
def test_no_sequence_is_lost_or_doubled_over_resumes_on_changing_ranks(prepared, lanes, pack, parts):
    options = {"lanes": lanes, "pack": pack}
    found, states = [], None
    for world_size, updates in [*parts, (1, 8)]:
        ranks = [data_of(prepared, rank, world_size, **options) for rank in range(world_size)]
        for data in ranks if states is not None else []:
            data.load(states)
        found += updates_of(ranks, updates)
        states = merged(ranks)
    assert found == updates_of([data_of(prepared, **options)], len(found))
    sequences, per_lane = all_sequences(prepared, pack), 12 // lanes
    for lane in range(lanes):  # of each lane's sequences every epoch has each one once
        mine = [tuple(ids) for update in found for ids in update[lane * per_lane : (lane + 1) * per_lane]]
        count = len(range(lane, len(sequences), lanes))
        everything = Counter(map(tuple, sequences))
        assert all(n <= everything[ids] for ids, n in Counter(mine[:count]).items())
    updates = -(-len(range(0, len(sequences), lanes)) // per_lane)
    epoch = updates_of([data_of(prepared, **options)], updates)
    firsts = []
    for lane in range(lanes):
        mine = [ids for update in epoch for ids in update[lane * per_lane : (lane + 1) * per_lane]]
        firsts += mine[: len(range(lane, len(sequences), lanes))]
    assert sorted(firsts) == sorted(sequences)


@pytest.mark.parametrize("pack", [False, True])
def test_every_update_of_two_epochs_can_be_taken_up(prepared, pack):
    whole = data_of(prepared, pack=pack)
    states, updates = [], []
    for _ in range(24):
        states.append(json.dumps(whole.state()))
        updates.append(sequences_of(whole.next_update()))
    for begin, state in enumerate(states[:-1]):
        data = data_of(prepared, pack=pack)
        data.load(json.loads(state))
        assert [sequences_of(data.next_update()) for _ in range(2)] == updates[begin : begin + 2]
    assert json.loads(states[5])["0"]["taken"] == 60


def test_epochs_lanes_and_seeds_are_other_orders(prepared):
    count = len(all_sequences(prepared, False)) // 12
    data = data_of(prepared)
    orders = [updates_of([data], count) for _ in range(2)]
    orders.append(updates_of([data_of(prepared, lanes=2)], count))
    orders.append(updates_of([data_of(prepared, train=dataclasses.replace(TRAIN, seed=4))], count))
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("tokens", [1, 50, 10**6])
def test_the_validation_set_is_that_of_the_text(prepared, texts, pack, tokens):
    found = []
    for config in (DataConfig(prepared=str(prepared), pack=pack), recipe(texts, pack=pack).data):
        _, source = open_data(config)
        found.append(validation_sequences(source, number_tokenizer(), config, TRAIN, tokens))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_seq_len_needs_no_other_preparation(prepared, texts):
    train = TrainConfig(global_batch=1, micro_batch=1, seq_len=64)
    source, _ = open_data(recipe(texts).data)
    documents = updates_of([data_of(prepared, train=train)], 76)
    assert sorted(ids for (ids,) in documents) == sorted(number_tokenizer().encode(texts_of(source)))


def test_the_type_is_the_smallest_that_holds_every_id():
    assert [dtype_for(pieces) for pieces in (2, 65536, 65537)] == ["<u2", "<u2", "<u4"]


def test_ids_beyond_16_bits_come_back(tmp_path, texts, monkeypatch):
    monkeypatch.setattr(preparing, "dtype_for", lambda _: "<u4")
    prepare_corpus(recipe(texts), VOCABULARY, tmp_path / "data")
    source, _ = open_prepared(str(tmp_path / "data"))
    assert source.document(0).dtype == np.uint32
    assert source.document(0).tolist()[-1] == 1


def damaged(folder, tmp_path, change):
    """A copy of prepared data with something changed."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    change(copy)
    return copy


def edit(**changes):
    def change(folder):
        tree = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**tree, **changes}))

    return change


def without_checksum(folder):
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    del tree["train"][0]["files"]["train-00000.ends"]["sha256"]
    path.write_text(json.dumps(tree))


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path)


def link_out(folder):
    shard = folder / "train-00001.tokens"
    shard.rename(folder.parent / "elsewhere")
    shard.symlink_to(folder.parent / "elsewhere")


DAMAGES = {
    "a link out of it": (link_out, "train-00001.tokens leads out of it"),
    "a link to itself": (
        lambda f: link_to_itself(f / "train-00001.tokens"),
        "train-00001.tokens has no bytes",
    ),
    "no checksum": (without_checksum, "as sha256, expected a str"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "has no manifest.json"),
    "no JSON": (lambda f: (f / "manifest.json").write_text("{"), "cannot be read"),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), "cannot be read"),
    "another format": (edit(format=2), "format 2, expected 1"),
    "another type": (edit(dtype="object"), "dtype 'object'"),
    "cut short": (lambda f: (f / "train-00001.tokens").write_bytes(b"xx"), "train-00001.tokens has 2 bytes"),
    "a file is gone": (lambda f: (f / "train-00001.ends").unlink(), "train-00001.ends has no bytes"),
    "another tokenizer": (lambda f: (f / "tokenizer.model").write_bytes(b"x"), "not the one"),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "its tokenizer is missing"),
    "outside": (
        edit(train=[{"name": "../x", "documents": 0, "tokens": 0, "files": {}}]),
        "shard '../x'",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_not_whole_is_one_line(prepared, tmp_path, name):
    change, words = DAMAGES[name]
    with pytest.raises(UserError) as caught:
        open_prepared(str(damaged(prepared, tmp_path, change)))
    assert str(caught.value).startswith("data.prepared ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=300)
@given(data=st.data(), value=JSON)
def test_a_manifest_with_anything_anywhere_is_taken_or_one_line(prepared, tmp_path_factory, data, value):
    tree = json.loads((prepared / "manifest.json").read_text())
    changed = put(tree, data.draw(st.sampled_from(list(places(tree)))), value)
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.exists():
        folder.mkdir()
        for path in prepared.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "manifest.json").unlink(missing_ok=True)
    (folder / "manifest.json").write_text(json.dumps(changed))
    refused = ""
    try:
        source, _ = open_prepared(str(folder))
        for pack in (False, True):
            TrainingData(source, number_tokenizer(), DataConfig(pack=pack), TRAIN, 0, 1).next_update()
    except UserError as error:
        refused = str(error)
    assert "\n" not in refused


def test_a_flipped_bit_is_found_by_verify(prepared, tmp_path, capsys):
    def flip(folder):
        content = bytearray((folder / "train-00001.tokens").read_bytes())
        content[7] ^= 4
        (folder / "train-00001.tokens").write_bytes(content)

    assert main(["data", "verify", str(prepared)]) == 0
    assert main(["data", "verify", str(damaged(prepared, tmp_path, flip))]) == 2
    assert "train-00001.tokens was changed" in capsys.readouterr().err


def test_a_state_of_other_data_is_refused(prepared, texts, tmp_path):
    prepare_corpus(recipe(texts, holdout=5), VOCABULARY, tmp_path / "other")
    other = data_of(tmp_path / "other")
    with pytest.raises(UserError, match="is not what the run was begun with"):
        other.load(data_of(prepared).state())


def test_more_lanes_than_sequences_are_refused(tmp_path):
    folder = write_files(tmp_path / "texts", [numbered(8)])
    prepare_corpus(recipe(folder, holdout=4), VOCABULARY, tmp_path / "data")
    with pytest.raises(UserError, match="has 6 sequences for 12 lanes"):
        data_of(tmp_path / "data", lanes=12)
    with pytest.raises(UserError, match="too short for one batch: found 6 of the 12 sequences"):
        data_of(tmp_path / "data").check_size()
