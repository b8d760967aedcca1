"""What is damaged, or another's, is never loaded, and harms nothing that is whole."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alphadecay_dist import UserError
from alphadecay_dist.checkpoint import restore
from alphadecay_dist.checkpoint.manifest import (
    MANIFEST,
    OtherFormatError,
    stored_file,
)
from alphadecay_dist.checkpoint.random_state import random_state, set_random_state
from alphadecay_dist.checkpoint.reader import first_whole, newest, read, search
from alphadecay_dist.sharding.layout import Flat
from tests.checkpoint.layouts import SHAPES, SHARD, load, rewritten, save
from tests.checkpoint.ranks import State, on_ranks


def flip(path, place=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 4
    path.write_bytes(content)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-9])


DAMAGES = {
    "flipped": (flip, SHARD, "does not have the content"),
    "flipped header": (lambda path: flip(path, 12), SHARD, "does not have the content"),
    "cut short": (cut_short, SHARD, "bytes, expected"),
    "missing": (Path.unlink, SHARD, "None bytes"),
    "flipped state": (flip, "state.json", "does not have the content"),
    "flipped manifest": (flip, MANIFEST, MANIFEST),
    "manifest cut short": (cut_short, MANIFEST, "not JSON"),
    "no manifest": (Path.unlink, MANIFEST, "not finished"),
    "empty manifest": (lambda path: path.write_text("{}"), MANIFEST, "format"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_passed_over_for_the_newest_whole_one(tmp_path, damage):
    whole, newer = save(tmp_path, 1), save(tmp_path, 2)
    harm, name, words = DAMAGES[damage]
    harm(newer / name)
    assert newest(tmp_path).folder == whole
    found = on_ranks(3, lambda ranks: first_whole(functools.partial(search, tmp_path), ranks))
    assert [own.checkpoint.folder for own in found] == [whole] * 3
    ((reason,),) = {own.skipped for own in found}
    assert words in reason
    assert str(newer) in reason
    assert "\n" not in reason
    shutil.rmtree(whole)
    assert newest(tmp_path) is None
    assert on_ranks(2, lambda ranks: newest(tmp_path, ranks)) == [None, None]


def test_ranks_share_the_files_to_compare(tmp_path):
    checkpoint = read(save(tmp_path, world_size=2))
    for name in checkpoint.manifest.files:
        flip(checkpoint.folder / name)
    found = [checkpoint.faults(rank, 2) for rank in range(2)]
    assert [len(own) for own in found] == [2, 1]
    assert sorted(found[0] + found[1]) == sorted(checkpoint.faults())


def set_file(data, name):
    data["files"][name] = data["files"].pop(SHARD)


CHANGES = {
    "absolute": (lambda d: set_file(d, "/etc/hostname"), "not in the checkpoint"),
    "upwards": (
        lambda d: set_file(d, "../step-00000001/shards/rank-00001.safetensors"),
        "not in the checkpoint",
    ),
    "hidden upwards": (lambda d: set_file(d, "shards/../../x"), "not in the checkpoint"),
    "unlisted": (lambda d: set_file(d, "shards/x"), "not among the files"),
    "a gap": (lambda d: d["tensors"][0]["pieces"].pop(), "elements, expected 30"),
    "beyond": (lambda d: d["tensors"][0]["pieces"][0].update(flat=[0, 99]), "expected a part of"),
    "backwards": (lambda d: d["tensors"][0]["pieces"][0].update(flat=[5, 2]), "expected a part of"),
    "negative": (lambda d: d["tensors"][0].update(shape=[-6, 5]), "expected a number"),
    "no shape": (lambda d: d["tensors"][0].pop("shape"), "as shape, expected a list"),
    "a step in words": (lambda d: d.update(step="three"), "as step, expected a int"),
    "no tensors": (lambda d: d.update(tensors=None), "as tensors"),
    "scalars": (lambda d: d.update(scalars={"step": {"a": "x"}}), "in step"),
    "files": (lambda d: d.update(files=[]), "as files"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_manifest_that_lies_is_one_line(tmp_path, change):
    whole, newer = save(tmp_path, 1), save(tmp_path, 2)
    alter, words = CHANGES[change]
    rewritten(newer, alter)
    with pytest.raises(UserError) as caught:
        read(newer)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert newest(tmp_path).folder == whole


def test_a_link_out_of_the_checkpoint_is_not_followed(tmp_path):
    folder = save(tmp_path / "run")
    shard = folder / SHARD
    shutil.move(shard, tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out of the checkpoint"):
        read(folder)


def test_a_link_to_itself_is_a_file_that_is_missing(tmp_path):
    folder = save(tmp_path)
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to(folder / SHARD)
    with pytest.raises(UserError, match="has None bytes"):
        read(folder)


def with_shard(root, change):
    """A checkpoint of one rank whose shard has other tensors, with a checksum that fits."""
    folder = save(root, world_size=1)
    shard = folder / "shards" / "rank-00000.safetensors"
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard)
    stored = asdict(stored_file(shard))
    rewritten(folder, lambda data: data["files"].update({"shards/rank-00000.safetensors": stored}))
    return folder


def test_a_tensor_of_another_size_is_not_spread_over_the_piece(tmp_path):
    folder = with_shard(tmp_path, lambda tensors: tensors.update({"weight/a.weight": torch.ones(1)}))
    with pytest.raises(UserError, match=r"weight/a.weight has the shape \[1\]"):
        load(read(folder), "flat", 1)


@pytest.mark.parametrize("name", ["python", "numpy", "torch"])
def test_generators_that_cannot_be_set_are_one_line(tmp_path, name):
    states = random_state()
    spoilt = {f"random/{name}": torch.zeros(9, dtype=torch.uint8)}
    folder = with_shard(tmp_path, lambda tensors: tensors.update(spoilt))
    with pytest.raises(UserError, match="has no states of random generators"):
        load(read(folder), "flat", 1)
    set_random_state(states)


@pytest.mark.parametrize("version", [1, 3])
def test_another_format_is_one_line_that_says_what_to_do(tmp_path, version):
    folder = save(tmp_path)
    if version == 1:
        old = {"step": 2, "world_size": 1, "engine": "fsdp2", "files": {}, "format": 1}
        (folder / MANIFEST).write_text(json.dumps(old))
    else:
        rewritten(folder, lambda data: data.update(format=version))
    for find in (lambda: newest(tmp_path), lambda: read(folder)):
        with pytest.raises(OtherFormatError, match=f"format {version}, expected 2: .* --resume none"):
            find()


def test_another_models_checkpoint_is_refused(tmp_path):
    checkpoint = read(save(tmp_path))
    other = {**SHAPES, "d.weight": (2, 2)}

    def work(ranks):
        restore.load(checkpoint, State(other, dict.fromkeys(other)), ranks)

    with pytest.raises(UserError, match=r"has 3 weights, the model 4, and 'd.weight'"):
        on_ranks(1, work)
    wider = {**SHAPES, "a.weight": (8,)}

    def load_wider(ranks):
        index = {name: Flat(0, torch.Size(shape).numel()) for name, shape in wider.items()}
        restore.load(checkpoint, State(wider, index), ranks)

    with pytest.raises(UserError, match=r"has \(7,\) as the weight of a.weight, expected \(8,\)"):
        on_ranks(1, load_wider)
