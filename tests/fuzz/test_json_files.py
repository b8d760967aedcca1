"""DeepSpeed's JSONs, and the manifests of checkpoints and of prepared data."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphadecay_dist.checkpoint import manifest
from alphadecay_dist.checkpoint.manifest import from_text, read_manifest
from alphadecay_dist.checkpoint.reader import newest, read
from alphadecay_dist.checkpoint.restore import stored_weights
from alphadecay_dist.engines.zero.config import premultiply_refusal, read_json, resolve
from alphadecay_dist.engines.zero.training import ZeroTraining
from alphadecay_dist.training.data.batches import TrainingData
from alphadecay_dist.training.data.prepare import PROGRESS, prepare_corpus
from alphadecay_dist.training.data.prepared import MANIFEST, open_prepared, verify
from alphadecay_dist.training.recipe import DataConfig
from tests.checkpoint.layouts import SHARD, load, save
from tests.fuzz.drawn import accepted, changed, damaged, draws, snapshot
from tests.training.corpora import number_tokenizer
from tests.training.preparations import VOCABULARY, recipe
from tests.training.runs import ROOT
from tests.training.sequences import TRAIN

DEEPSPEED = [json.loads(path.read_text()) for path in sorted((ROOT / "ds_configs").glob("*.json"))]
RECIPE = {"global_batch": 24, "micro_batch": 8, "accumulation": 3, "clip": 1.0, "dtype": "float32"}


@draws(100)
@given(
    content=st.sampled_from(DEEPSPEED).flatmap(changed).map(lambda tree: json.dumps(tree).encode())
    | damaged(json.dumps(DEEPSPEED[-1]).encode())
)
def test_a_deepspeed_json(place, content):
    (place / "ds.json").write_bytes(content)

    def config():
        resolved = resolve(read_json(str(place / "ds.json")), **RECIPE)
        premultiply_refusal(resolved)
        ZeroTraining(resolved).check_config()

    accepted(config)


def signed(tree):
    """A manifest with the checksum that fits."""
    if isinstance(tree, dict):
        tree = {key: value for key, value in tree.items() if key != "crc32"}
        tree = json.loads(json.dumps(tree))
        tree = {"crc32": manifest._checksum(tree), **tree}
    return json.dumps(tree)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two checkpoints, and the newer one's manifest."""
    root = tmp_path_factory.mktemp("checkpoints")
    save(root, 1)
    newer = save(root, 2, layout="rows")
    return root, newer, json.loads((newer / manifest.MANIFEST).read_text())


def look_through(folder):
    """Read all of a checkpoint, as a resume does on other ranks."""
    checkpoint = read(folder)
    assert not checkpoint.faults()
    load(checkpoint, "flat", 1)
    for weight in stored_weights(checkpoint).values():
        weight.read()


@draws(150)
@given(data=st.data())
def test_a_checkpoints_manifest(checkpoints, data):
    _, _, whole = checkpoints
    text = signed(data.draw(changed(whole)))
    accepted(lambda: from_text(text), ValueError)


@draws(50)
@given(data=st.data())
def test_a_checkpoint_whose_manifest_was_changed(checkpoints, data):
    root, newer, whole = checkpoints
    text = signed(data.draw(changed(whole, most=2)))
    (newer / manifest.MANIFEST).write_text(text)
    accepted(lambda: look_through(newer))
    accepted(lambda: newest(root))


@draws(60)
@given(data=st.data())
def test_a_shard_of_another_content(checkpoints, data):
    """Its checksum fits, so that what reads it sees it."""
    _, newer, whole = checkpoints
    shard = newer / SHARD
    kept = shard.read_bytes()
    try:
        shard.write_bytes(data.draw(damaged(kept)))
        stored = manifest.stored_file(shard)
        files = {**whole["files"], SHARD: {"bytes": stored.bytes, "crc32": stored.crc32}}
        (newer / manifest.MANIFEST).write_text(signed({**whole, "files": files}))
        accepted(lambda: look_through(newer))
    finally:
        shard.write_bytes(kept)


@draws(60)
@given(data=st.data(), name=st.sampled_from([manifest.MANIFEST, "state.json", SHARD, "../latest"]))
def test_a_checkpoint_with_a_damaged_file_is_passed_over(checkpoints, data, name):
    root, newer, whole = checkpoints
    (newer / manifest.MANIFEST).write_text(json.dumps(whole))
    file = newer / name
    kept = file.read_bytes()
    try:
        file.write_bytes(data.draw(damaged(kept)))
        same = file.read_bytes() == kept or name == "../latest"
        found = newest(root)
        assert found is not None
        assert same or found.manifest.step == 1 or read_manifest(newer).step == 2
    finally:
        file.write_bytes(kept)


@pytest.fixture(scope="module")
def shards(tmp_path_factory, prepared):
    folder = tmp_path_factory.mktemp("shards") / "data"
    shutil.copytree(prepared, folder)
    return folder, json.loads((folder / MANIFEST).read_text())


def train_from(folder):
    source, _ = open_prepared(str(folder))
    for pack in (False, True):
        TrainingData(source, number_tokenizer(), DataConfig(pack=pack), TRAIN, 0, 1).next_update()


@draws(75)
@given(data=st.data())
def test_a_manifest_of_prepared_data(shards, data):
    folder, whole = shards
    content = data.draw(
        changed(whole).map(lambda tree: json.dumps(tree).encode()) | damaged(json.dumps(whole).encode())
    )
    (folder / MANIFEST).write_bytes(content)
    before = snapshot(folder)
    accepted(lambda: train_from(folder))
    accepted(lambda: verify(folder))
    assert snapshot(folder) == before


@draws(60)
@given(data=st.data(), suffix=st.sampled_from(["tokens", "ends"]))
def test_a_shard_of_prepared_data(shards, data, suffix):
    folder, whole = shards
    (folder / MANIFEST).write_text(json.dumps(whole))
    file = folder / f"train-00000.{suffix}"
    kept = file.read_bytes()
    try:
        content = bytearray(kept)
        for _ in range(data.draw(st.integers(1, 5))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content)
        if bytes(content) != kept:
            assert not accepted(lambda: verify(folder))
    finally:
        file.write_bytes(kept)


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory, texts):
    """A preparation that ended in the middle, and its progress."""
    folder = tmp_path_factory.mktemp("broken") / "data"
    prepare_corpus(recipe(texts), VOCABULARY, folder)
    whole = json.loads((folder / MANIFEST).read_text())
    header = {key: whole[key] for key in ("format", "dtype", "tokenizer", "source")}
    (folder / MANIFEST).unlink()
    cursors = {"train": "finished", "validation": None}
    return folder, {
        "header": header,
        "shards": {"train": whole["train"], "validation": []},
        "cursors": cursors,
    }


@draws(60)
@given(data=st.data())
def test_the_progress_of_a_preparation(broken_off, texts, data):
    folder, whole = broken_off
    content = data.draw(
        changed(whole).map(lambda tree: json.dumps(tree).encode()) | damaged(json.dumps(whole).encode())
    )
    (folder / PROGRESS).write_bytes(content)
    (folder / MANIFEST).unlink(missing_ok=True)
    accepted(lambda: prepare_corpus(recipe(texts), VOCABULARY, folder))


def test_the_fixtures_are_whole(checkpoints, shards, broken_off, texts):
    root, newer, whole = checkpoints
    (newer / manifest.MANIFEST).write_text(json.dumps(whole))
    assert accepted(lambda: look_through(newer))
    assert newest(root).folder == newer
    folder, tree = shards
    (folder / MANIFEST).write_text(json.dumps(tree))
    assert accepted(lambda: train_from(folder))
    folder, progress = broken_off
    (folder / PROGRESS).write_text(json.dumps(progress))
    (folder / MANIFEST).unlink(missing_ok=True)
    assert accepted(lambda: prepare_corpus(recipe(texts), VOCABULARY, folder))
