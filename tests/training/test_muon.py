"""Muon through the trainer: the same run on every engine, and resumed on others."""

from __future__ import annotations

import json
import re

import pytest
import torch

import train
from alphadecay_dist import UserError
from alphadecay_dist.checkpoint.reader import newest, read
from alphadecay_dist.checkpoint.restore import stored_tensors
from alphadecay_dist.commands.formats import export_universal, trained
from alphadecay_dist.training.preflight import resolve
from tests.multirank import run_ranks
from tests.resilience.poison import poisoned
from tests.resilience.test_nonfinite import gradient_nan
from tests.training.errors import error_of_ranks, main_and_output
from tests.training.runs import (
    ROOT,
    argv_of,
    distance,
    final_weights,
    left_behind,
    same_weights,
    tiny_options,
    train_on,
    without_times,
)
from tests.training.test_methods import train_each

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]

STEPS = 6
MUON = {
    "optimizer__name": "muon",
    "optimizer__muon_lr": 0.006,
    "optimizer__momentum": 0.9,
    "train__clip": 0,
    "train__steps": STEPS,
    "decay__interval": 3,
    "data__pack": True,
}


def options_of(folder, **more):
    config = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    config["zero_optimization"]["reduce_scatter"] = False
    (folder / "zero3.json").write_text(json.dumps(config))
    return tiny_options(folder, **{**MUON, **more})


def engine_of(folder, name):
    return str(folder / "zero3.json") if name == "3" else name


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("muon")
    options = options_of(folder)
    return folder, options, train_on(1, "ddp", folder / "one", options)


def losses(run):
    return [line["loss"] for line in run["metrics"]]


# DeepSpeed rounds its products elsewhere than torch's Muon does.
ENGINES = [
    ("fsdp2", 3, 2e-4),
    ("0", 2, 2e-4),
    ("2", 3, 1e-3),
    *(pytest.param(name, 2, 2e-4, marks=pytest.mark.long) for name in ("ddp", "hsdp")),
]


@pytest.mark.parametrize(("engine", "world_size", "close"), ENGINES)
def test_every_engine_trains_as_one_process(reference, engine, world_size, close):
    folder, options, one = reference
    run = train_on(world_size, engine_of(folder, engine), folder / f"{engine}_{world_size}", options)
    assert losses(run) == pytest.approx(losses(one), abs=close)
    assert losses(run)[-1] < losses(run)[0] - 0.1
    assert [line["step"] for line in run["decay"]] == [0, 3]
    for line, expected in zip(run["decay"], one["decay"], strict=True):
        for name, module in line["modules"].items():
            found = expected["modules"][name]["weight_decay"]
            assert module["weight_decay"] == pytest.approx(found, abs=1e-2)


def test_muon_has_a_rate_of_its_own(reference):
    folder, options, one = reference
    same = train_on(1, "ddp", folder / "same", [*options, "--optimizer.muon_lr=null"])
    twice = train_on(1, "ddp", folder / "twice", [*options, "--optimizer.muon_lr=0.003"])
    assert losses(same) == losses(twice)
    assert abs(losses(same)[-1] - losses(one)[-1]) > 0.01
    assert [line["lr"] for line in same["metrics"]] == [line["lr"] for line in one["metrics"]]


JOURNEYS = {
    "fsdp2 of 2, ddp of 1, fsdp2 of 3": ((("fsdp2", 2), ("ddp", 1), ("fsdp2", 3)), 2e-4),
    "zero2 of 2, zero3 of 3, zero1 of 1, fsdp2 of 2": ((("2", 2), ("3", 3), ("1", 1), ("fsdp2", 2)), 1e-3),
}


@pytest.mark.parametrize("journey", JOURNEYS)
def test_a_run_goes_on_anywhere(reference, journey):
    folder, options, one = reference
    output, (walk, close) = folder / journey.replace(" ", "_"), JOURNEYS[journey]
    for number, (engine, world_size) in enumerate(walk, 1):
        stop = STEPS if number == len(walk) else number
        run = train_on(
            world_size, engine_of(folder, engine), output, [*options, f"--train.stop_after={stop}"]
        )
        kinds = stored_tensors(newest(output / "checkpoints"))
        assert set(kinds["model.layers.0.mlp.up_proj.weight"]) == {"weight", "momentum_buffer"}
        assert set(kinds["lm_head.weight"]) == {"weight", "exp_avg", "exp_avg_sq"}
    assert losses(run) == pytest.approx(losses(one), abs=close)
    assert distance(final_weights(output), final_weights(folder / "one")) < 50 * close
    with pytest.raises(UserError, match="was trained with muon, whose momentum DeepSpeed's universal"):
        export_universal(trained(output), folder / "universal")


SOME = {
    "optimizer__muon_heads": "q,k,v",
    "optimizer__muon_modules": "*.mlp.*,*.q_proj,*.k_proj,*.v_proj",
    "train__steps": 4,
    "decay__interval": 2,
}


@pytest.mark.parametrize(
    ("engine", "policies"),
    [
        ("fsdp2", ("alphadecay",)),
        ("0", ("alphadecay",)),
        ("2", ("llr", "cautious")),
        pytest.param("3", ("alphadecay",), marks=pytest.mark.long),
    ],
)
def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(tmp_path, engine, policies):
    """With heads, and AdamW for some tuned matrices."""
    runs = []
    for policy in policies:
        options = options_of(tmp_path, decay__policy=policy, decay__apply="auto", **SOME)
        whole, broken = tmp_path / f"{policy}-whole", tmp_path / f"{policy}-broken"
        own = engine_of(tmp_path, engine)
        runs.append(argv_of(own, whole, options))
        runs.append(argv_of(own, broken, [*options, "--train.stop_after=3"]))
        runs.append(argv_of(own, broken, options))
    outcomes = run_ranks(train_each, 2, runs)
    assert [codes for codes, _ in outcomes] == [[0] * len(runs)] * 2
    for policy in policies:
        whole, broken = tmp_path / f"{policy}-whole", tmp_path / f"{policy}-broken"
        assert same_weights(whole, broken), policy
        assert without_times(left_behind(whole)) == without_times(left_behind(broken)), policy
        kinds = stored_tensors(newest(whole / "checkpoints"))
        assert "momentum_buffer" in kinds["model.layers.0.self_attn.q_proj.weight"]
        assert "exp_avg" in kinds["model.layers.0.self_attn.o_proj.weight"]


@pytest.mark.parametrize("engine", ["3", pytest.param("2", marks=pytest.mark.long)])
def test_a_bad_update_is_skipped_and_leaves_the_momentum(tmp_path, engine):
    """DeepSpeed moves momentum before it knows the norm; other engines do not step at all."""
    options = options_of(
        tmp_path, train__on_nonfinite="skip", train__steps=3, checkpoint__every=1, checkpoint__keep=0
    )
    output = tmp_path / "run"
    argv = argv_of(engine_of(tmp_path, engine), output, options)
    assert run_ranks(poisoned, 2, argv, gradient_nan, (2,)) == [0, 0]
    assert [line["step"] for line in left_behind(output)["metrics"] if "skipped" in line] == [2]
    checkpoints = [read(output / "checkpoints" / f"step-{step:08d}") for step in (1, 2, 3)]
    before, after, later = (
        {kind: own.read() for kind, own in stored_tensors(each)["model.layers.0.mlp.up_proj.weight"].items()}
        for each in checkpoints
    )
    for kind in ("weight", "momentum_buffer"):
        assert torch.equal(before[kind], after[kind])
        assert later[kind].isfinite().all()
        assert not torch.equal(after[kind], later[kind])


@pytest.mark.parametrize(
    "engine", ["2", *(pytest.param(own, marks=pytest.mark.long) for own in ("fsdp2", "3"))]
)
def test_a_run_that_goes_back_has_the_momentum_of_then(tmp_path, engine):
    """At a constant rate, update 3 after the way back is update 4 where 3 was skipped."""
    own, found = {"optimizer__schedule": "constant", "optimizer__warmup": 0, "decay__interval": 9}, []
    for policy, last in (("skip", 5), ("rollback", 4)):
        sizes = {"train__steps": last, "checkpoint__every": 1, "train__on_nonfinite": policy}
        options = options_of(tmp_path, decay__apply="auto", **own, **sizes)
        argv = argv_of(engine_of(tmp_path, engine), tmp_path / policy, options)
        assert run_ranks(poisoned, 2, argv, gradient_nan, (3,)) == [0, 0]
        stored = stored_tensors(newest(tmp_path / policy / "checkpoints"))
        found.append(
            {(name, kind): own.read() for name, kinds in stored.items() for kind, own in kinds.items()}
        )
    skipped, went_back = found
    assert all(torch.equal(skipped[key], went_back[key]) for key in skipped)


@pytest.mark.parametrize(
    ("engine", "options", "words"),
    [
        ("2", {}, "train.clip: found 1.0 with DeepSpeed's Muon, expected 0: it would clip"),
        ("2", {"train__clip": 0, "optimizer__nesterov": False}, "optimizer.nesterov: found False with Deep"),
        ("2", {"train__clip": 0, "optimizer__ns_steps": 6}, "optimizer.ns_steps: found 6 with DeepSpeed's"),
        ("1", {"train__clip": 0, "optimizer__adjust_lr": "match_rms_adamw"}, "optimizer.adjust_lr: found"),
        ("1", {"train__clip": 0, "optimizer__muon_heads": "o"}, "optimizer.muon_heads: found o with Deep"),
        (
            "3",
            {"train__clip": 0},
            "zero_optimization.reduce_scatter is not false, which Muon needs",
        ),
        ("3_offload", {"train__clip": 0}, "reduce_scatter is not false"),
        ("fsdp2", {"optimizer__muon_modules": "*.nope"}, "optimizer.muon_modules: '*.nope' matches no tuned"),
        ("fsdp2", {"decay__follow": "[bias]"}, "decay.follow: found ['bias'] with optimizer.name 'muon'"),
        ("fsdp2", {"optimizer__name": "adamw", "optimizer__muon_lr": 1}, "optimizer.muon_lr: found 1.0 with"),
        ("fsdp2", {"optimizer__muon_lr": -1}, "optimizer.muon_lr: found -1.0, expected 0 or more"),
        (
            "fsdp2",
            {"optimizer__lr": 0, "optimizer__muon_lr": 1},
            "optimizer.lr: found 0 with optimizer.muon_lr",
        ),
        ("fsdp2", {"optimizer__momentum": 1}, "optimizer.momentum: found 1.0, expected a number in [0, 1)"),
        ("fsdp2", {"optimizer__muon_heads": "x"}, "optimizer.muon_heads: unknown 'x'"),
    ],
)
def test_what_cannot_be_is_refused_before_ranks_meet(tmp_path, engine, options, words):
    asked = tiny_options(tmp_path, **{"optimizer__name": "muon", **options})
    with pytest.raises(UserError, match=re.escape(words)):
        resolve(train.parse(argv_of(engine, tmp_path / "run", asked)))


def test_deepspeeds_muon_refuses_what_reads_gradients(tmp_path):
    policies = [("decay__policy", name) for name in ("adadecay_original", "awd")]
    for key, value in [*policies, ("telemetry__spectral_condition", 2)]:
        argv = argv_of("2", tmp_path / "run", options_of(tmp_path, **{key: value}))
        assert "DeepSpeed's Muon has orthogonalised them before the step; use FSDP2" in error_of_ranks(argv)
        assert not (tmp_path / "run").exists()


def test_a_dry_run_tells_the_groups(tmp_path):
    argv = argv_of("fsdp2", tmp_path / "run", [*options_of(tmp_path), "--dry_run"])
    ((code, text),) = run_ranks(main_and_output, 1, argv)
    assert code == 0, text
    assert "name: muon" in text
    assert "param groups:" in text
