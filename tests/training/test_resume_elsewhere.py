"""A run that goes on with another number of ranks, or under another engine, is the unbroken run."""

from __future__ import annotations

import itertools
import resource
import shutil

import pytest
import torch

import train
from alphadecay_dist import cli
from alphadecay_dist.checkpoint.reader import newest
from alphadecay_dist.training.outputs.run_files import read_status
from tests.multirank import run_ranks
from tests.training.runs import (
    argv_of,
    distance,
    final_weights,
    left_behind,
    tiny_options,
    train_on,
)

pytestmark = pytest.mark.kills

STOPS = (6, 11, 16)  # between refreshes, right after one, and the end
JOURNEYS = {
    "zero3 of 2, fsdp2 of 3, zero3 of 1": (("3", 2), ("fsdp2", 3), ("3", 1)),
    "zero1 of 1, zero2 of 3, ddp of 2": (("1", 1), ("2", 3), ("ddp", 2)),
    "fsdp2 of 1, zero3 of 3, zero1 of 2": (("fsdp2", 1), ("3", 3), ("1", 2)),
    "ddp of 2, offloaded zero3 of 2, hsdp of 2": (("ddp", 2), ("3_offload", 2), ("hsdp", 2)),
    "zero0 of 2, zero3 of 2, zero0 of 1": (("0", 2), ("3", 2), ("0", 1)),
}
# With engines that the walk does not have; the others are journeys of the long count.
OFF_THE_WALK = ("ddp of 2, offloaded zero3 of 2, hsdp of 2", "zero0 of 2, zero3 of 2, zero0 of 1")
# A walk that goes from each of 1, 2, 3, 4 ranks to each other once, the engines in turn.
RANKS = (1, 2, 1, 3, 1, 4, 2, 3, 2, 4, 3, 4, 1)
WALK = tuple(zip(itertools.cycle(("3", "fsdp2", "2", "3", "fsdp2", "1", "ddp")), RANKS, strict=False))


def options_of(folder, **more):
    return tiny_options(
        folder, **{"train__steps": 16, "decay__interval": 5, "data__lanes": 2, "data__pack": True, **more}
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    options = options_of(folder, eval__every=8, logging__sequences=True)
    return folder, options, train_on(2, "2", folder / "whole", options)


@pytest.mark.parametrize(
    "journey",
    [pytest.param(name, marks=() if name in OFF_THE_WALK else pytest.mark.long) for name in JOURNEYS],
)
def test_a_run_goes_on_anywhere(unbroken, journey):
    folder, options, whole = unbroken
    output = folder / journey.replace(" ", "_")
    check_is_unbroken(travelled(output, options, zip(JOURNEYS[journey], STOPS, strict=True)), whole)
    assert distance(final_weights(output), final_weights(folder / "whole")) < 2e-5
    assert read_status(output)["state"] == "finished"


def test_a_run_goes_from_each_number_of_ranks_to_each_other(unbroken):
    assert set(itertools.pairwise(RANKS)) == set(itertools.permutations((1, 2, 3, 4), 2))
    folder, options, whole = unbroken
    stops = (*range(2, 14), 16)
    run = travelled(folder / "walk", options, zip(WALK, stops, strict=True))
    check_is_unbroken(run, whole)
    assert distance(final_weights(folder / "walk"), final_weights(folder / "whole")) < 2e-5


def travelled(output, options, journey):
    """A run that changes engine and ranks at each stop; returns what it left behind."""
    for (engine, world_size), stop in journey:
        run = train_on(world_size, engine, output, [*options, f"--train.stop_after={stop}"])
        checkpoint = newest(output / "checkpoints")
        assert (checkpoint.manifest.step, checkpoint.manifest.world_size) == (stop, world_size)
    return run


def check_is_unbroken(run, whole):
    """The same sequences, tokens, learning rates and refreshes; losses and decays within tolerances."""
    assert run["sequences"] == whole["sequences"]
    assert [line["step"] for line in run["metrics"]] == list(range(1, 17))
    assert [line["tokens"] for line in run["metrics"]] == [line["tokens"] for line in whole["metrics"]]
    assert [line["lr"] for line in run["metrics"]] == [line["lr"] for line in whole["metrics"]]
    for name in ("metrics", "eval"):
        losses = [line["loss"] for line in whole[name]]
        assert [line["loss"] for line in run[name]] == pytest.approx(losses, abs=1e-5)
    assert [line["step"] for line in run["decay"]] == [0, 5, 10, 15]
    for line, expected in zip(run["decay"], whole["decay"], strict=True):
        assert list(line["modules"]) == list(expected["modules"])
        for name, module in line["modules"].items():
            for key, tolerance in (("alpha", 1e-5), ("weight_decay", 1e-4)):
                assert module[key] == pytest.approx(expected["modules"][name][key], abs=tolerance)


def test_bf16_masters_come_exactly_to_another_engine(tmp_path):
    """An update with a learning rate of 0 changes no master: what one engine saved the next saves again."""
    options = options_of(tmp_path, train__dtype="bfloat16", train__steps=5)
    output, weights = tmp_path / "run", []
    for stop, (engine, world_size) in enumerate((("3", 2), ("1", 3), ("fsdp2", 2)), 3):
        still = [] if stop == 3 else ["--optimizer.lr=0"]
        train_on(world_size, engine, output, [*options, f"--train.stop_after={stop}", *still])
        weights.append(final_weights(output))
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items())
    assert any((value.bfloat16().float() != value).any() for value in weights[0].values())


def flip(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_sends_a_run_back_to_the_checkpoint_before(unbroken, capfd):
    folder, options, whole = unbroken
    output = folder / "flipped"
    every = [*options, "--checkpoint.every=3", "--checkpoint.keep=2"]
    train_on(2, "3", output, [*every, "--train.stop_after=9"])
    checkpoints = output / "checkpoints"
    assert sorted(f.name for f in checkpoints.glob("step-*")) == ["step-00000006", "step-00000009"]
    flip(checkpoints / "step-00000009" / "shards" / "rank-00001.safetensors")
    capfd.readouterr()
    assert cli.main(["spectrum", str(output)]) == 0
    assert capfd.readouterr().out.splitlines()[0].endswith("step-00000006")
    assert cli.main(["spectrum", str(checkpoints / "step-00000009")]) == 2
    assert "rank-00001.safetensors does not have the content" in capfd.readouterr().err
    argv = argv_of("3", output, every)
    named = ["--resume", str(checkpoints / "step-00000009")]
    assert run_ranks(train.main, 2, [*argv, *named]) == [2, 2]
    other = checkpoints / "step-00000006" / "shards" / "rank-00000.safetensors"
    flip(other)
    assert run_ranks(train.main, 2, argv) == [2, 2], "what was saved is not removed unasked"
    flip(other)
    run = train_on(2, "3", output, every)
    losses = [line["loss"] for line in whole["metrics"]]
    assert [line["loss"] for line in run["metrics"]] == pytest.approx(losses, abs=1e-5)


def run_with_small_files(argv):
    """Files of this process may not grow beyond 500 kB: no shard of the tiny model fits."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
    return train.main(argv)


def test_files_that_may_not_grow_end_a_run_and_harm_no_checkpoint(unbroken):
    folder, options, whole = unbroken
    output = folder / "full"
    train_on(2, "fsdp2", output, [*options, "--train.stop_after=6"])
    argv = argv_of("fsdp2", output, [*options, "--train.stop_after=8"])
    assert run_ranks(run_with_small_files, 2, argv) == [1, 1]
    assert [f.name for f in (output / "checkpoints").glob("step-*")] == ["step-00000006"]
    status = read_status(output)
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert "File too large" in status["reason"]
    run = train_on(2, "fsdp2", output, options)
    losses = [line["loss"] for line in whole["metrics"]]
    assert [line["loss"] for line in run["metrics"]] == pytest.approx(losses, abs=1e-5)


def test_a_checkpoint_of_the_first_format_is_left_as_it_is(tmp_path):
    options = options_of(tmp_path, train__steps=4)
    output = tmp_path / "run"
    train_on(1, "ddp", output, [*options, "--train.stop_after=2"])
    folder = output / "checkpoints" / "step-00000002"
    shutil.rmtree(folder / "shards")
    old = '{"step": 2, "world_size": 1, "engine": "ddp", "files": {}, "format": 1}'
    (folder / "manifest.json").write_text(old)
    before = left_behind(output)
    assert run_ranks(train.main, 1, argv_of("ddp", output, options)) == [2]
    assert (folder / "manifest.json").read_text() == old
    assert left_behind(output) == before
