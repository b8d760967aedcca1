"""Small checkpoints in every layout that an engine has, saved and loaded on some ranks."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import torch

from alphadecay_dist.checkpoint import manifest, restore, writer
from alphadecay_dist.checkpoint.manifest import MANIFEST, stored_file
from alphadecay_dist.sharding.layout import Flat, Grid, flat_chunks
from tests.checkpoint.ranks import State, on_ranks

SHAPES = {"b.weight": (6, 5), "a.weight": (7,), "c.weight": (3, 4, 2)}
KINDS = ("weight", "exp_avg", "exp_avg_sq")
VALUES = {
    kind: {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(i)) for name, shape in SHAPES.items()
    }
    for i, kind in enumerate(KINDS)
}
NUMBERS = {"step": dict.fromkeys(SHAPES, 7.0)}
SHARD = "shards/rank-00001.safetensors"


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
    return with_state(save(root, world_size=1), content)


def with_state(folder, content):
    """A checkpoint with another state.json, and a checksum that fits."""
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


def rewritten(folder, change):
    """Another manifest with a fitting checksum."""
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    data.pop("crc32", None)
    (folder / MANIFEST).write_text(json.dumps({"crc32": manifest._checksum(data), **data}))


def steps_in(root):
    return [int(folder.name.removeprefix("step-")) for folder in sorted(root.glob("step-*"))]


def fill_the_disk(monkeypatch, rank):
    """From now on a rank gets half of its file written."""
    write_shard = writer.write_shard

    def fails(folder, own, parts, others):
        if own == rank:
            (folder / f"shards/rank-0000{own}.safetensors").write_bytes(b"half of it")
            raise OSError(28, os.strerror(28))
        return write_shard(folder, own, parts, others)

    monkeypatch.setattr(writer, "write_shard", fails)
