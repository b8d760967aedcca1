"""A DeepSpeed JSON and the recipe -> DeepSpeed's config, or one clear line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphadecay_dist.engines.zero.config import read_json, resolve
from alphadecay_dist.engines.zero.training import ZeroTraining
from alphadecay_dist.errors import UserError

CONFIGS = sorted((Path(__file__).parents[3] / "ds_configs").glob("*.json"))
RECIPE = {"global_batch": 24, "micro_batch": 4, "accumulation": 3, "clip": 1.0, "dtype": "bfloat16"}
FILLED = {
    "train_batch_size": 24,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 3,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "fp16": {"enabled": False},
    "zero_force_ds_cpu_optimizer": False,
}


def test_the_four_configs_are_there():
    assert [path.stem for path in CONFIGS] == ["zero1", "zero2", "zero3", "zero3_offload"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_shipped_config_resolves_and_is_left_as_it_was(path, dtype):
    config = read_json(str(path))
    before = copy.deepcopy(config)
    resolved = resolve(config, **{**RECIPE, "dtype": dtype})
    assert config == before
    expected = {**FILLED, "bf16": {"enabled": dtype == "bfloat16"}}
    assert resolved == {**expected, "zero_optimization": config["zero_optimization"]}
    assert "auto" not in json.dumps(resolved)
    assert resolved["zero_optimization"]["stage"] == int(path.stem[4])


def test_missing_values_are_filled_as_auto_ones_are():
    stage = {"zero_optimization": {"stage": 1}}
    assert resolve(stage, **RECIPE) == {**FILLED, **stage}


def test_values_equal_to_the_recipes_are_taken():
    config = {**FILLED, "zero_optimization": {"stage": 2}}
    assert resolve(copy.deepcopy(config), **RECIPE) == config


def test_bf16_at_stage_0_is_refused():
    with pytest.raises(UserError, match=r"stage is 0 with train\.dtype bfloat16"):
        resolve({}, **RECIPE)
    assert not resolve({}, **{**RECIPE, "dtype": "float32"})["bf16"]["enabled"]


def test_what_is_not_the_recipes_passes_through():
    config = {"steps_per_print": 7, "zero_optimization": {"stage": 3, "sub_group_size": 5}}
    config["bf16"] = {"immediate_grad_update": True}
    resolved = resolve(config, **RECIPE)
    assert {**resolved, "bf16": {}} == {**FILLED, **config, "bf16": {}}
    assert resolved["bf16"] == {"immediate_grad_update": True, "enabled": True}


def test_the_resolved_config_shares_nothing_with_the_input():
    config = {"zero_optimization": {"stage": 1}, "bf16": {}}
    resolved = resolve(config, **RECIPE)
    resolved["zero_optimization"]["stage"] = 3
    assert config == {"zero_optimization": {"stage": 1}, "bf16": {}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"optimizer": {"type": "AdamW"}}, ["'optimizer'", "remove the section"]),
        ({"scheduler": {}}, ["'scheduler'", "remove the section"]),
        ({"train_batch_size": 48}, ["train_batch_size is 48", "24", "train.global_batch"]),
        ({"train_batch_size": "24"}, ["train_batch_size is '24'", "24"]),
        ({"train_batch_size": None}, ["train_batch_size is None", "24"]),
        (
            {"train_micro_batch_size_per_gpu": 8},
            ["train_micro_batch_size_per_gpu is 8", "4", "train.micro_batch"],
        ),
        ({"gradient_accumulation_steps": 1}, ["gradient_accumulation_steps is 1", "3"]),
        ({"gradient_clipping": 0.5}, ["gradient_clipping is 0.5", "1.0", "train.clip"]),
        ({"gradient_clipping": True}, ["gradient_clipping is True", "1.0"]),
        ({"bf16": {"enabled": False}}, ["bf16.enabled is False", "True", "train.dtype bfloat16"]),
        ({"bf16": {"enabled": 1}}, ["bf16.enabled is 1", "True"]),
        ({"bf16": True}, ["bf16 is True", "object"]),
        ({"fp16": {"enabled": True}}, ["fp16.enabled is True", "False"]),
        ({"fp16": []}, ["fp16 is []", "object"]),
        ({"zero_optimization": 2}, ["zero_optimization is 2", "object"]),
        ({"zero_optimization": {"stage": 4}}, ["zero_optimization.stage is 4", "0 to 3"]),
        ({"zero_optimization": {"stage": "auto"}}, ["stage is 'auto'", "0 to 3"]),
        ({"zero_optimization": {"stage": True}}, ["stage is True", "0 to 3"]),
        ({"zero_optimization": {"stage": 2.0}}, ["stage is 2.0", "0 to 3"]),
        ({"zero_optimization": {"stage": [1]}}, ["stage is [1]", "0 to 3"]),
        ({"zero_optimization": {"offload_optimizer": {"super_offload": True}}}, ["SuperOffload", "remove"]),
        ({"zero_optimization": {"zenflow": {"topk_ratio": 0.1}}}, ["ZenFlow", "remove"]),
        ({"zero_optimization": {"zenflow": {}}}, ["ZenFlow", "remove"]),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            ["offload_optimizer.device is 'nvme'", "checkpoints"],
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
            ["offload_optimizer.ratio is 0.5", "expected 1.0", "remove"],
        ),
        (
            {"zero_optimization": {"compute_grad_norm": False}},
            ["compute_grad_norm is False", "true", "remove"],
        ),
        ({"bf16": {"check_grad_overflow": False}}, ["bf16.check_grad_overflow is False", "true", "remove"]),
    ],
)
def test_a_refusal_names_what_was_found_and_what_is_expected(config, words):
    with pytest.raises(UserError) as caught:
        resolve(config, **RECIPE)
    assert all(word in str(caught.value) for word in ["DeepSpeed config: ", *words]), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[1, 2]", ["found a list", "JSON object"]),
        (b"null", ["found a NoneType", "JSON object"]),
        (b"{'stage': 1}", ["not JSON"]),
        (b"", ["not JSON"]),
        (b"[" * 100_000, ["not JSON"]),
        (b'{"a": ' + b"9" * 5000 + b"}", ["not JSON"]),
        (b"\xff\xfe", ["cannot be read"]),
    ],
)
def test_a_file_that_is_no_json_object_is_named(tmp_path, content, words):
    path = tmp_path / "ds.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(str(path))
    assert all(word in str(caught.value) for word in [f"--deepspeed {path}: ", *words]), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such file; give .*, or one of zero1, zero2, "):
        read_json(str(tmp_path / "none.json"))
    with pytest.raises(UserError, match="cannot be read"):
        read_json(str(tmp_path))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_name_is_a_json_of_the_package_unless_a_file_has_it(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    assert read_json(path.stem) == json.loads(path.read_text())
    (tmp_path / path.stem).mkdir()  # such as a run's directory
    assert read_json(path.stem) == json.loads(path.read_text())
    (tmp_path / path.stem).rmdir()
    (tmp_path / path.stem).write_text('{"steps_per_print": 7}')
    assert read_json(path.stem) == {"steps_per_print": 7}


def test_an_unknown_name_is_answered_with_those_that_there_are():
    with pytest.raises(UserError) as caught:
        read_json("zero9")
    line = "--deepspeed zero9: no such file; give the path of a JSON, or one of "
    assert str(caught.value) == line + "zero1, zero2, zero3, zero3_offload"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("auto"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
ZERO = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("stage", "offload_optimizer", "zenflow", "offload_param"), JSON)
)
KNOWN = ("optimizer", "scheduler", "bf16", "fp16", *FILLED)


@given(
    st.fixed_dictionaries({}, optional={"zero_optimization": ZERO | JSON, **dict.fromkeys(KNOWN, JSON)}),
    st.dictionaries(st.text(max_size=5), JSON, max_size=2),
)
def test_any_object_resolves_or_is_one_user_error(known, other):
    config = {**other, **known}
    before = repr(config)
    try:
        resolved = resolve(config, **RECIPE)
    except UserError:
        resolved = None
    assert repr(config) == before
    if resolved is not None:
        assert all(resolved[key] == value for key, value in FILLED.items() if key not in ("bf16", "fp16"))
        assert (resolved["bf16"]["enabled"], resolved["fp16"]["enabled"]) == (True, False)
        assert not {"optimizer", "scheduler"} & set(resolved)


@pytest.mark.parametrize("section", ["comms_logger", "flops_profiler", "aio", "autotuning", "checkpoint"])
def test_what_deepspeed_stumbles_over_is_one_line(section):
    alone = {**RECIPE, "accumulation": 6, "dtype": "float32"}
    ZeroTraining(resolve({}, **alone)).check_config()
    config = resolve({section: 3}, **alone)
    with pytest.raises(UserError, match=r"DeepSpeed config: refused by DeepSpeed: .*; correct that value"):
        ZeroTraining(config).check_config()


@pytest.mark.parametrize("section", ["offload_optimizer", "offload_param"])
def test_an_offload_that_is_no_object_is_one_line(section):
    with pytest.raises(UserError, match=f"{section} is 'cpu', expected an object"):
        resolve({"zero_optimization": {"stage": 2, section: "cpu"}}, **RECIPE)
