"""The same run of image classification on every engine and number of ranks, in one part and in several."""

from __future__ import annotations

import pytest
import torch

from alphadecay_dist.decay.policies import POLICIES
from tests.multirank import run_ranks
from tests.training.runs import left_behind
from tests.training.tasks.vision.runs import (
    STEPS,
    WIDTH,
    options_of,
    refused,
    run,
    same_tensors,
    tensors_of,
    trained,
    write_idx,
)

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_idx(tmp_path_factory.mktemp("images") / "idx")


@pytest.fixture(scope="module")
def alone(source, tmp_path_factory):
    """The run of one process, with a checkpoint after each update."""
    output = tmp_path_factory.mktemp("alone") / "run"
    return output, run(1, "ddp", output, options_of(source, checkpoint__every=1))


def test_a_run_says_what_it_did(alone):
    _, left = alone
    assert set(left["metrics"][0]) == {"step", "loss", "lr", "grad_norm", "images", "mfu"}
    assert [line["images"] for line in left["metrics"]] == [24 * step for step in range(1, STEPS + 1)]
    names = ["step", "loss", "top1", "top5", "ema_loss", "ema_top1", "ema_top5"]
    assert [list(line) for line in left["eval"]] == [names] * 3
    first, last = left["eval"][0], left["eval"][-1]
    assert first["loss"] == first["ema_loss"]
    assert last["loss"] != last["ema_loss"]
    assert [line["step"] for line in left["decay"]] == [0, 3, 6]
    modules = left["decay"][-1]["modules"].values()
    assert len(modules) == 8
    assert len({module["weight_decay"] for module in modules}) == 8
    digests = [digest for line in left["sequences"] for digest in line["sequences"]]
    assert len(set(digests)) == STEPS * 24  # of 60 images: in each epoch they are augmented anew


def test_the_average_is_the_plain_one(alone):
    output, _ = alone
    weights = [tensors_of(output, step) for step in range(1, STEPS + 1)]
    averages = {name: tensor for (name, kind), tensor in weights[0].items() if kind == "ema"}
    assert len(averages) == len({name for name, _ in weights[0]})
    for (name, kind), tensor in weights[-1].items():
        if kind == "ema":
            plain = averages[name].double()  # of the first update: no checkpoint is before it
            for found in weights[1:]:
                plain = 0.7 * plain + 0.3 * found[name, "weight"].double()
            torch.testing.assert_close(tensor.double(), plain, atol=1e-7, rtol=1e-6)
            assert not torch.allclose(tensor, weights[-1][name, "weight"], atol=1e-5)


def without_key_biases(tensors):
    """All but the biases of the keys: softmax takes none of them in, so their gradient is rounding alone.

    AdamW makes steps of it, which differ with whatever changes the rounding.
    """
    kept = dict(tensors)
    for name, kind in tensors:
        if name.endswith("qkv.bias"):
            queries, _, values = tensors[name, kind].split(WIDTH)
            kept[name, kind] = torch.cat([queries, values])
    return kept


MORE = [pytest.param(engine, marks=pytest.mark.long) for engine in ("ddp", "1")]


@pytest.mark.parametrize("engine", ["fsdp2", "2", "3", *MORE])
def test_every_engine_is_the_run_of_one_process(alone, source, tmp_path, engine):
    before, expected = alone
    found = run(2, engine, tmp_path / "run", options_of(source))
    assert found["sequences"] == expected["sequences"]
    for key in ("loss", "grad_norm"):
        mine = [line[key] for line in found["metrics"]]
        assert mine == pytest.approx(
            [line[key] for line in expected["metrics"]], abs=1e-5 if key == "loss" else 1e-4
        )
    for line, other in zip(found["decay"], expected["decay"], strict=True):
        for name, module in line["modules"].items():
            assert module["alpha"] == pytest.approx(other["modules"][name]["alpha"], abs=1e-5)
    for line, other in zip(found["eval"], expected["eval"], strict=True):
        assert line == pytest.approx(other, abs=1e-5)
    theirs = without_key_biases(tensors_of(before))
    for key, tensor in without_key_biases(tensors_of(tmp_path / "run")).items():
        torch.testing.assert_close(tensor, theirs[key], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("engine", "world_size"), [("fsdp2", 2), ("3", 2)])
def test_a_run_in_three_parts_is_the_unbroken_one(source, tmp_path, engine, world_size):
    options = options_of(source)
    whole = run(world_size, engine, tmp_path / "whole", options)
    for stop in ("--train.stop_after=3", "--train.stop_after=5", "--train.steps=7"):  # 3, 5: in mid-epoch
        found = run(world_size, engine, tmp_path / "parts", [*options, stop])
    assert found == whole
    assert same_tensors(tmp_path / "parts", tmp_path / "whole")


def test_a_run_goes_on_with_other_ranks_under_another_engine(alone, source, tmp_path):
    _, expected = alone
    options = options_of(source)
    run(2, "fsdp2", tmp_path / "run", [*options, "--train.stop_after=3"])
    found = run(3, "3", tmp_path / "run", options)
    assert found["sequences"] == expected["sequences"]
    losses = [line["loss"] for line in found["metrics"]]
    assert losses == pytest.approx([line["loss"] for line in expected["metrics"]], abs=1e-5)
    assert found["eval"][-1] == pytest.approx(expected["eval"][-1], abs=1e-5)


def test_recomputed_activations_drop_the_same(alone, source, tmp_path):
    _, expected = alone
    options = [*options_of(source), "--train.activation_checkpointing", "--task.workers=2"]
    found = run(1, "ddp", tmp_path / "run", options)
    assert found["metrics"] == expected["metrics"]


@pytest.mark.parametrize("engine", ["fsdp2", "2", pytest.param("ddp", marks=pytest.mark.long)])
def test_bf16_over_fp32_masters(alone, source, tmp_path, engine):
    _, expected = alone
    options = options_of(source, train__dtype="bfloat16", train__steps=3)
    found = run(2, engine, tmp_path / "run", options)
    losses = [line["loss"] for line in expected["metrics"][:3]]
    assert [line["loss"] for line in found["metrics"]] == pytest.approx(losses, abs=0.05)
    averages = [tensor for (_, kind), tensor in tensors_of(tmp_path / "run").items() if kind == "ema"]
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in averages)


def test_what_cannot_be(source, tmp_path):
    options = options_of(source)
    said = refused(2, "ddp", tmp_path / "run", [*options, "--task.mix_batch=8"])
    assert "task.mix_batch: found 8, expected a divisor of a rank's share of train.global_batch, 12" in said
    said = refused(2, "ddp", tmp_path / "run", [*options, "--task.classes=9"])
    assert "task.classes: found 9, expected at least 10: as many has data.source" in said


def test_changed_images_are_refused(tmp_path):
    source = write_idx(tmp_path / "idx")
    options = options_of(source, eval__every=0)
    run(1, "ddp", tmp_path / "run", [*options, "--train.stop_after=1"])
    images = source / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1] + b"\1")
    said = refused(1, "ddp", tmp_path / "run", options)
    assert "data.source train-images-idx3-ubyte: has other content" in said
    said = refused(1, "ddp", tmp_path / "run", [*options, "--task.erase=0.5"])
    assert "task.erase: found 0.5, the run in " in said


def by_each_policy(folder, options):
    """A run of two updates under each policy, on one rank; their decays after it."""
    found = {}
    for policy in POLICIES:
        code, said = trained([*options, f"--decay.policy={policy}", "--output_dir", str(folder / policy)])
        assert code == 0, said
        found[policy] = left_behind(folder / policy)["metrics"]
    return found


def test_all_methods_of_the_table_train(source, tmp_path):
    more = {"train__steps": 2, "decay__interval": 1, "eval__every": 0, "task__ema": 0}
    (found,) = run_ranks(by_each_policy, 1, tmp_path, ["--engine=ddp", *options_of(source, **more)])
    assert found.keys() == POLICIES.keys()
    for metrics in found.values():
        assert metrics[0]["loss"] == found["uniform"][0]["loss"]
        assert metrics[1]["loss"] == pytest.approx(found["uniform"][1]["loss"], abs=0.1)
    assert len({metrics[1]["loss"] for metrics in found.values()}) > 3
