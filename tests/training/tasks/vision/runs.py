"""Tiny runs of image classification: noise of ten kinds in idx files, a transformer of two blocks."""

from __future__ import annotations

import contextlib
import gzip
import io
import struct

import numpy as np
import torch

import train
from alphadecay_dist.checkpoint.reader import newest, read
from alphadecay_dist.checkpoint.restore import stored_tensors
from tests.multirank import run_ranks
from tests.training.runs import argv_of, left_behind, without_times

TRAIN, VALIDATION = 60, 22  # two updates of 24 an epoch, 12 images are left over; a padded evaluation
STEPS = 7
WIDTH = 64


def write_idx(folder, train=TRAIN, validation=VALIDATION):
    """Images 12 x 12 in the four files of MNIST; a stripe says which class, noise is over it."""
    folder.mkdir()
    for start, count in (("train", train), ("t10k", validation)):
        drawn = np.random.default_rng(count)
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = drawn.integers(0, 120, (count, 12, 12)).astype(np.uint8)
        images[np.arange(count), 1 + labels, :] = 255
        header = struct.pack(">HBB3I", 0, 8, 3, count, 12, 12)
        (folder / f"{start}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        compressed = gzip.compress(struct.pack(">HBBI", 0, 8, 1, count) + labels.tobytes())
        (folder / f"{start}-labels-idx1-ubyte.gz").write_bytes(compressed)
    return folder


def options_of(source, **changes):
    options = {
        "model.task": "vision",
        "model.name": "vit_tiny_patch16_224",
        "data.source": source,
        "task.image_size": 16,
        "task.channels": 1,
        "task.classes": 10,
        "task.patch_size": 4,
        "task.width": WIDTH,
        "task.depth": 2,
        "task.heads": 2,
        "task.drop_path": 0.4,
        "task.mix_batch": 4,
        "task.ema": 0.7,
        "task.workers": 1,
        "train.steps": STEPS,
        "train.global_batch": 24,
        "train.micro_batch": 6,  # no multiple of the groups
        "train.dtype": "float32",
        "train.clip": 1.0,
        "optimizer.lr": 0.003,
        "decay.interval": 3,
        "decay.weight_decay": 0.5,
        "checkpoint.keep": 0,
        "eval.every": 4,
        "logging.wandb": "off",
        "logging.sequences": "true",
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return [f"--{key}={value}" for key, value in options.items()]


def trained(argv):
    """The trainer on one rank: its exit code and what it says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = train.main(argv)
    return code, said.getvalue()


def trained_on_one_thread(argv):
    """The same with one BLAS thread: on a busy machine several may round otherwise from run to run."""
    torch.set_num_threads(1)
    return trained(argv)


def run(world_size, engine, output, options):
    """A run to its end, or to where it was to stop: what it left behind, without times."""
    outcomes = run_ranks(trained_on_one_thread, world_size, argv_of(engine, output, options))
    assert [code for code, _ in outcomes] == [0] * world_size, outcomes[0][1]
    left = without_times(left_behind(output))
    for line in left["metrics"]:
        del line["images_per_second"]
    return left


def refused(world_size, engine, output, options):
    """What rank 0 says of a mistake."""
    outcomes = run_ranks(trained, world_size, argv_of(engine, output, options))
    assert [code for code, _ in outcomes] == [2] * world_size, outcomes[0][1]
    return outcomes[0][1]


def tensors_of(output, step=None):
    """The tensors of a checkpoint by name and kind; of the newest, unless a step is given."""
    folder = output / "checkpoints"
    checkpoint = newest(folder) if step is None else read(folder / f"step-{step:08d}")
    return {
        (name, kind): tensor.read()
        for name, kinds in stored_tensors(checkpoint).items()
        for kind, tensor in kinds.items()
    }


def same_tensors(left, right):
    left, right = tensors_of(left), tensors_of(right)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
