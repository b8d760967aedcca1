"""Save on some ranks, load on others; what is damaged is never loaded, and harms nothing that is whole."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from alphadecay_dist import UserError
from alphadecay_dist.checkpoint import restore, writer
from alphadecay_dist.checkpoint.manifest import (
    MANIFEST,
    OtherFormatError,
    from_text,
    read_manifest,
    stored_file,
    to_text,
)
from alphadecay_dist.checkpoint.random_state import random_state, set_random_state
from alphadecay_dist.checkpoint.reader import newest, read, search
from alphadecay_dist.errors import RunError
from alphadecay_dist.sharding.layout import Flat, Grid, flat_chunks
from tests.checkpoint.ranks import State, cut, on_ranks

SHAPES = {"b.weight": (6, 5), "a.weight": (7,), "c.weight": (3, 4, 2)}
KINDS = ("weight", "exp_avg", "exp_avg_sq")
VALUES = {
    kind: {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(i)) for name, shape in SHAPES.items()
    }
    for i, kind in enumerate(KINDS)
}
NUMBERS = {"step": dict.fromkeys(SHAPES, 7.0)}


def flat_index(rank, world_size):
    """Flat chunks, as ZeRO-3 has them."""
    found = {name: flat_chunks(torch.Size(shape).numel(), world_size)[rank] for name, shape in SHAPES.items()}
    return {name: index if index.numel else None for name, index in found.items()}


def run_index(rank, world_size):
    """All parameters in a row and cut, as ZeRO-1 and 2 have them."""
    sizes = [torch.Size(shape).numel() for shape in SHAPES.values()]
    own, found, begin = flat_chunks(sum(sizes), world_size)[rank], {}, 0
    for name, size in zip(SHAPES, sizes, strict=True):
        found[name] = own.within(Flat(begin, begin + size))
        begin += size
    return found


def row_index(rank, world_size):
    """Rows, as FSDP2 has them."""
    found = {}
    for name, shape in SHAPES.items():
        rows = flat_chunks(shape[0], world_size)[rank]
        found[name] = Grid(((rows,), *((Flat(0, n),) for n in shape[1:]))) if rows.numel else None
    return found


def whole_index(_rank, _world_size):
    """All of it, as DDP has it."""
    return {name: Flat(0, torch.Size(shape).numel()) for name, shape in SHAPES.items()}


LAYOUTS = {"flat": flat_index, "run": run_index, "rows": row_index, "whole": whole_index}


def state_of(layout, rank, world_size):
    return State(SHAPES, LAYOUTS[layout](rank, world_size), saved=layout != "whole" or rank == 0)


def save(root, step=1, layout="flat", world_size=2, keep=0, values=VALUES, numbers=NUMBERS, extra=None):
    def work(ranks):
        state = state_of(layout, ranks.rank, world_size)
        state.put(values, numbers)
        beside = extra or {"tokens": step * 10}
        return writer.save(
            root, step, engine_state=state, layout=layout, state=beside, ranks=ranks, keep=keep
        )

    return on_ranks(world_size, work)[0]


def save_with_state(root, content):
    """A checkpoint of one rank whose state.json has some bytes, with a checksum that fits."""
    folder = save(root, world_size=1)
    (folder / "state.json").write_bytes(content)
    stored = asdict(stored_file(folder / "state.json"))
    rewritten(folder, lambda data: data["files"].update({"state.json": stored}))
    return folder


def load(checkpoint, layout, world_size):
    def work(ranks):
        state = state_of(layout, ranks.rank, world_size)
        restore.load(checkpoint, state, ranks)
        return state

    return on_ranks(world_size, work)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("world_size", "other"), [(1, 3), (3, 2), (2, 4)])
@pytest.mark.parametrize("other_layout", LAYOUTS)
def test_what_some_ranks_saved_others_load_exactly(tmp_path, layout, world_size, other, other_layout):
    folder = save(tmp_path, 7, layout, world_size)
    for state in load(read(folder), other_layout, other):
        parts = state.parts()
        assert {part.kind for part in parts} in (set(KINDS), set())
        for part in parts:
            assert torch.equal(part.values, cut(VALUES[part.kind][part.name], part.index))
        assert state.numbers == NUMBERS
        assert state.published == 7


def test_a_checkpoint_tells_what_it_is(tmp_path):
    checkpoint = read(save(tmp_path, 30, "rows", 2))
    manifest = checkpoint.manifest
    assert (manifest.step, manifest.world_size, manifest.engine, manifest.scalars) == (30, 2, "rows", NUMBERS)
    assert {"torch", "safetensors"} <= set(manifest.versions)
    assert set(manifest.files) == {"state.json", *(f"shards/rank-0000{rank}.safetensors" for rank in (0, 1))}
    names = [tensor.name for tensor in manifest.tensors]
    assert names == [*SHAPES] * 3, "in the model's order, a kind after the other"
    assert checkpoint.state() == {"tokens": 300}
    assert (tmp_path / "latest").read_text() == "step-00000030\n"
    stored = restore.stored_weights(checkpoint)
    assert [*stored] == [*SHAPES]
    assert all(torch.equal(w.contiguous(), VALUES["weight"][name]) for name, w in stored.items())
    assert from_text(to_text(manifest)) == manifest


def test_before_the_first_step_there_are_weights_alone(tmp_path):
    folder = save(tmp_path, 0, values={"weight": VALUES["weight"]}, numbers={})
    for state in load(read(folder), "rows", 3):
        assert {part.kind for part in state.parts()} <= {"weight"}
        assert state.numbers == {}


@pytest.mark.parametrize("world_size", [1, 2])
def test_replicas_are_saved_once(tmp_path, world_size):
    checkpoint = read(save(tmp_path, layout="whole", world_size=world_size))
    assert all(len(tensor.pieces) == 1 for tensor in checkpoint.manifest.tensors)


def test_random_generators_go_on(tmp_path):
    states = random_state()
    drawn = (random.random(), numpy.random.random(), torch.rand(3))
    set_random_state(states)
    again = (random.random(), numpy.random.random(), torch.rand(3))
    assert drawn[:2] == again[:2]
    assert torch.equal(drawn[2], again[2])
    folder = save(tmp_path, world_size=1)
    expected = torch.rand(3)
    load(read(folder), "rows", 1)
    assert torch.equal(torch.rand(3), expected)
    load(read(folder), "rows", 2)  # another number of ranks has no states of its own
    assert not torch.equal(torch.rand(3), expected)


def flip(path, place=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 4
    path.write_bytes(content)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-9])


SHARD = "shards/rank-00001.safetensors"
DAMAGES = {
    "flipped": (flip, SHARD, "does not have the content"),
    "flipped header": (lambda path: flip(path, 12), SHARD, "does not have the content"),
    "cut short": (cut_short, SHARD, "bytes, expected"),
    "missing": (Path.unlink, SHARD, "None bytes"),
    "flipped state": (flip, "state.json", "does not have the content"),
    "flipped manifest": (flip, MANIFEST, MANIFEST),
    "manifest cut short": (cut_short, MANIFEST, "no JSON"),
    "no manifest": (Path.unlink, MANIFEST, "not finished"),
    "empty manifest": (lambda path: path.write_text("{}"), MANIFEST, "format"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_passed_over_for_the_newest_whole_one(tmp_path, damage):
    whole, newer = save(tmp_path, 1), save(tmp_path, 2)
    harm, name, words = DAMAGES[damage]
    harm(newer / name)
    assert newest(tmp_path).folder == whole
    reasons = {}
    while (found := search(tmp_path, reasons)).checkpoint.folder != whole:
        reasons[newer] = (found.checkpoint.faults(0, 2) + found.checkpoint.faults(1, 2))[0]
    (reason,) = found.skipped
    assert words in reason
    assert str(newer) in reason
    assert "\n" not in reason
    shutil.rmtree(whole)
    assert newest(tmp_path) is None


def rewritten(folder, change):
    """Another manifest with a fitting checksum."""
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    data.pop("crc32", None)
    (folder / MANIFEST).write_text(json.dumps({"crc32": checksum(data), **data}))


def checksum(data):
    from alphadecay_dist.checkpoint import manifest

    return manifest._checksum(data)


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


def steps_in(root):
    return [int(folder.name.removeprefix("step-")) for folder in sorted(root.glob("step-*"))]


def test_the_newest_whole_ones_are_kept(tmp_path):
    for step in (2, 4, 6, 8):
        save(tmp_path, step, keep=0)
    (tmp_path / "step-00000006" / MANIFEST).unlink()
    save(tmp_path, 10, keep=3)
    assert steps_in(tmp_path) == [4, 8, 10], "what is not whole does not count, and goes"
    (tmp_path / "step-00000008" / MANIFEST).unlink()
    save(tmp_path, 5, keep=1)
    assert steps_in(tmp_path) == [5, 8, 10], "later steps are another branch's"
    assert newest(tmp_path).folder.name == "step-00000005", "which latest names"


def test_a_whole_checkpoint_stays_where_a_rank_dies_before_it_hears_of_it(tmp_path):
    """Rank 0 has written the manifest and `latest` when telling the others of it fails."""
    save(tmp_path, step=1)

    def work(ranks):
        from_main, calls = ranks.from_main, []

        def broken_off(work):
            calls.append(from_main(work))
            if len(calls) == 2:
                raise RuntimeError("connection closed by peer")
            return calls[-1]

        ranks.from_main = broken_off
        state = state_of("flat", 0, 1)
        state.put(VALUES, NUMBERS)
        writer.save(tmp_path, 2, engine_state=state, layout="flat", state={}, ranks=ranks, keep=1)

    with pytest.raises(RuntimeError, match="closed by peer"):
        on_ranks(1, work)
    assert (tmp_path / "latest").read_text() == "step-00000002\n"
    assert newest(tmp_path).manifest.step == 2
    assert read(tmp_path / "step-00000001").manifest.step == 1


def test_a_step_is_saved_anew_over_what_a_killed_save_left(tmp_path):
    folder = save(tmp_path, 3)
    (folder / MANIFEST).unlink()
    (folder / "shards" / "rank-00009.safetensors").write_bytes(b"of more ranks")
    save(tmp_path, 3)
    assert not (folder / "shards" / "rank-00009.safetensors").exists()
    assert read_manifest(folder).world_size == 2
    assert newest(tmp_path).folder == folder


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_is_one_line_and_harms_no_whole_checkpoint(tmp_path, monkeypatch, rank):
    whole = save(tmp_path, 1)
    write_shard = writer.write_shard

    def fails(folder, own, parts, others):
        if own == rank:
            (folder / f"shards/rank-0000{own}.safetensors").write_bytes(b"half of it")
            raise OSError(28, os.strerror(28))
        return write_shard(folder, own, parts, others)

    monkeypatch.setattr(writer, "write_shard", fails)
    with pytest.raises(RunError, match=r"step-00000002: the checkpoint cannot be written: No space left"):
        save(tmp_path, 2, keep=1)
    assert steps_in(tmp_path) == [1]
    assert newest(tmp_path).folder == whole


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(RunError, match=r"cannot be written: Not a directory; .* older checkpoints"):
        save(tmp_path / "file" / "checkpoints")
