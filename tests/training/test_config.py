"""Recipes: the published settings, strict keys and types, overrides."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alphadecay_dist.errors import UserError
from alphadecay_dist.spectral import Windows
from alphadecay_dist.training.config import (
    check,
    config_from_dict,
    flat,
    load_config,
    nearest,
    recipe_names,
    seconds_of,
    to_yaml,
)
from alphadecay_dist.training.preflight import parameter_count
from alphadecay_dist.training.recipe import AT_LEAST, CHOICES, Config
from alphadecay_dist.training.tasks.language.model import build_on_meta, model_names, read_model_config

# hidden, intermediate, layers, heads, updates, seed, base decay, its largest multiple, peak learning rate
PUBLISHED = {
    "llama_60m": (512, 1376, 8, 8, 10_000, 0, 1e-5, 3.0, 1e-3),
    "llama_130m": (768, 2048, 12, 12, 20_000, 5, 5e-6, 5.0, 1e-3),
    "llama_350m": (1024, 2736, 24, 16, 60_000, 0, 5e-6, 5.0, 1e-3),
    "llama_1b": (2048, 5461, 24, 32, 90_000, 0, 5e-6, 5.0, 6e-4),
}
MILLIONS = {"llama_60m": 58.07, "llama_130m": 134.11, "llama_350m": 367.97, "llama_1b": 1339.08}


def test_the_demo_and_every_published_run_are_there():
    assert recipe_names() == sorted(["demo", "vit_demo", "vit_tiny", *PUBLISHED])
    assert model_names() == sorted(["llama_demo", *PUBLISHED])


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_round_trips_through_its_yaml(name, tmp_path):
    config = load_config(name)
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(config))
    assert load_config(str(path)) == config


def test_a_changed_config_round_trips_through_its_yaml(tmp_path):
    config = load_config("demo", ["train.stop_after=7", "logging.wandb=off", "optimizer.betas=[0.5, 0.25]"])
    path = tmp_path / "again.yml"
    path.write_text(to_yaml(config))
    assert load_config(str(path)) == config
    assert (config.train.stop_after, config.logging.wandb) == (7, "off")
    assert config.optimizer.betas == (0.5, 0.25)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_settings(name):
    config = load_config(name)
    *_, steps, seed, weight_decay, max_ratio, rate = PUBLISHED[name]
    found = dict(flat(config))
    assert (
        found
        | {
            "model.name": name,
            "data.source": "c4",
            "data.pack": False,
            "tokenizer.model": "t5-base",
            "train.steps": steps,
            "train.seed": seed,
            "train.global_batch": 512,
            "train.seq_len": 256,
            "train.dtype": "bfloat16",
            "train.clip": 0.0,
            "optimizer.name": "adam",
            "optimizer.lr": rate,
            "optimizer.warmup": 0.1,
            "optimizer.schedule": "cosine",
            "optimizer.min_lr_ratio": 0.1,
            "decay.policy": "alphadecay",
            "decay.weight_decay": weight_decay,
            "decay.interval": 500,
            "decay.min_ratio": 0.6666,
            "decay.max_ratio": max_ratio,
            "decay.untuned": "base",
            "eval.tokens": 10_000_000,
        }
        == found
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models(name):
    hidden, intermediate, layers, heads, *_ = PUBLISHED[name]
    config = read_model_config(name, load_config(name).train.seq_len)
    assert (config.hidden_size, config.intermediate_size) == (hidden, intermediate)
    assert (config.num_hidden_layers, config.num_attention_heads) == (layers, heads)
    assert (config.vocab_size, config.rms_norm_eps, config.hidden_act) == (32_000, 1e-6, "silu")
    assert (config.initializer_range, config.tie_word_embeddings) == (0.02, False)
    block = 4 * hidden**2 + 3 * hidden * intermediate + 2 * hidden
    formula = 2 * 32_000 * hidden + layers * block + hidden
    assert parameter_count(build_on_meta(config)) == formula
    assert formula / 1e6 == pytest.approx(MILLIONS[name], abs=0.005)


def test_1_2_3_4_6_and_8_ranks_divide_the_demos_global_batch():
    assert all(load_config("demo").train.global_batch % ranks == 0 for ranks in (1, 2, 3, 4, 6, 8))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trian.steps=1", ["'trian'", "did you mean 'train'"]),
        ("train.stepz=1", ["train.stepz", "did you mean 'steps'"]),
        ("decay.intervall=1", ["decay.intervall", "did you mean 'interval'"]),
        ("zzz.q=1", ["'zzz'", "known: checkpoint, data, decay"]),
        ("train.steps=ten", ["train.steps", "'ten'", "int"]),
        ("train.steps=1.5", ["train.steps", "1.5", "int"]),
        ("train.steps=1e3", ["train.steps", "'1e3'", "int"]),
        ("train.steps=true", ["train.steps", "True", "int"]),
        ("train.steps=null", ["train.steps", "None", "int"]),
        ("train.steps=", ["train.steps", "None", "int"]),
        ("train.stop_after=soon", ["train.stop_after", "'soon'", "int"]),
        ("data.pack=1", ["data.pack", "1", "bool"]),
        ("train.lr=1", ["train.lr", "did you mean 'optimizer.lr'"]),
        ("optimizer.every=1", ["did you mean 'checkpoint.every' or 'eval.every' or 'logging.every'"]),
        ("model.hidden_size=64", ["model.hidden_size", "known: name", "in a JSON", "--model.name=PATH.json"]),
        ("logging.wandb=on", ["logging.wandb", "True (on, yes or true", "one of auto, online, offline, off"]),
        ("decay.normalize=off", ["decay.normalize", "False (off, no or false", "one of none, mean"]),
        ("optimizer.lr=fast", ["optimizer.lr", "'fast'", "float"]),
        ("optimizer.lr=true", ["optimizer.lr", "True", "float"]),
        ("optimizer.lr=" + "9" * 400, ["optimizer.lr", "999", "float"]),
        ("optimizer.lr=.nan", ["optimizer.lr", "nan", "finite"]),
        ("optimizer.lr=.inf", ["optimizer.lr", "inf", "finite"]),
        ("optimizer.lr=1e999", ["optimizer.lr", "inf", "finite"]),
        ("optimizer.betas=0.9", ["optimizer.betas", "0.9"]),
        ("optimizer.betas=[0.9]", ["optimizer.betas", "[0.9]"]),
        ("optimizer.betas=[0.9, 1]", ["optimizer.betas", "1.0", "[0, 1)"]),
        ("optimizer.betas=[.nan, 0.9]", ["optimizer.betas", "nan", "[0, 1)"]),
        ("train={steps: 1}", ["train={steps: 1}", "--section.key=value"]),
        ("train.steps", ["train.steps", "--section.key=value"]),
        ("a.b.c=1", ["a.b.c=1", "--section.key=value"]),
        ("train.steps=[1", ["--train.steps", "not YAML"]),
        ("train.steps=2024-13-45", ["--train.steps", "not YAML", "month"]),
        ("train.steps=0b_", ["--train.steps", "not YAML"]),
        ("decay.min_ratio=6", ["decay.min_ratio", "6", "max_ratio 5"]),
        ("data.lanes=7", ["data.lanes", "7", "train.global_batch 24"]),
    ],
)
def test_an_error_names_the_key_and_what_was_found_and_expected(override, words):
    with pytest.raises(UserError) as caught:
        load_config("demo", [override])
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match=r"'llama_60'.*did you mean 'llama_60m'.*known: demo"):
        load_config("llama_60")


def test_nearest_has_no_guess_for_what_is_near_nothing():
    assert nearest("qqq", ["train", "decay"]) == "; known: decay, train"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["None", "sections"]),
        (b"- 1", ["[1]", "sections"]),
        (b"train: 3", ["train", "3", "keys and values"]),
        (b"train:", ["train", "None", "keys and values"]),
        (b"1: {a: 2}", ["unknown section 1"]),
        (b"train: {1: 2}", ["unknown key train.1"]),
        (b"a: [", ["not YAML"]),
        (b"[" * 1000, ["not YAML"]),
        (b"\xff\xfe\x00", ["cannot be read"]),
    ],
)
def test_a_broken_recipe_file_is_one_line(tmp_path, content, words):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        load_config(str(tmp_path / "none.yaml"))


def test_an_override_into_a_section_that_is_no_mapping_names_the_section(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("train: 3")
    with pytest.raises(UserError, match="section train is 3"):
        load_config(str(path), ["train.steps=1"])


@pytest.mark.parametrize("key", AT_LEAST)
def test_a_value_below_its_least_is_refused_and_the_least_is_not(key):
    section, name = key.split(".")
    tree = dataclasses.asdict(Config())
    tree[section][name] = AT_LEAST[key] - 1
    with pytest.raises(UserError, match=rf"{key}: found -?\d.*expected {AT_LEAST[key]} or more"):
        check(config_from_dict(tree))
    tree[section][name] = AT_LEAST[key]
    check(config_from_dict(tree))


@pytest.mark.parametrize("key", CHOICES)
def test_every_choice_is_taken_and_another_refused(key):
    section, name = key.split(".")
    for choice in CHOICES[key]:
        assert dict(flat(load_config("demo", [f"{key}={choice}"])))[f"{section}.{name}"] == choice
    with pytest.raises(UserError, match=rf"{key}: found 'other', expected one of {CHOICES[key][0]}"):
        load_config("demo", [f"{key}=other"])


def test_overrides_are_read_as_yaml_and_the_last_one_wins():
    options = ["train.steps=3", "train.steps=4", "optimizer.lr=1e-4", "model.name=123", "data.pack=false"]
    config = load_config("demo", options)
    assert (config.train.steps, config.optimizer.lr, config.model.name) == (4, 1e-4, "123")
    assert config.data.pack is False


@pytest.mark.parametrize("word", ["off", "false", "no", "'off'"])
def test_wandb_off_survives_yaml_reading_it_as_false(word):
    assert load_config("demo", [f"logging.wandb={word}"]).logging.wandb == "off"


KEYS = [key for key, _ in flat(Config())]
VALUES = st.one_of(
    st.text(),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["null", "true", "off", "{}", "[]", "[0.9, 0.9]", "~", "2024-13-45", "0b_", "*a", "<<"]),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists).map(
        yaml.safe_dump
    ),
)
OVERRIDES = st.one_of(st.text(), st.builds("{}={}".format, st.sampled_from(KEYS), VALUES))


@settings(deadline=None)
@given(OVERRIDES)
@example("optimizer.lr=" + "9" * 400)
@example("train.steps=" + "9" * 5000)
@example("train.steps=" + "[" * 1000)
@example("train.steps=2020-01-01T25:00:00Z")
def test_any_override_gives_a_config_or_one_user_error(override):
    try:
        config = load_config("demo", [override])
    except UserError:
        return
    assert config_from_dict(yaml.safe_load(to_yaml(config))) == config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["decay.xmin_pos=1"], "decay.xmin_pos: found 1.0"),
        (["decay.farms_rows=0"], "decay.farms: found rows 0"),
        (["decay.farms_rows=64", "decay.farms_aspect=0"], "decay.farms: found rows 64, aspect 0"),
        (["decay.farms_rows=64", "decay.farms_grid=[0, 1]"], "decay.farms"),
        (
            ["decay.metric=log_norm", "decay.assign=log2"],
            "decay.metric: found 'log_norm' with",
        ),
        (
            ["decay.apply=premultiply", "optimizer.name=adam"],
            "decay.apply: found 'premultiply' with optimizer.name 'adam', expected 'adamw'",
        ),
    ],
)
def test_decay_settings_that_do_not_go_together_are_refused(overrides, words):
    with pytest.raises(UserError, match=words):
        load_config("demo", overrides)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("600", 600), ("1.5", 1.5), ("90m", 5400), ("11h50m", 42600), ("1d2h", 93600), ("1h2m3.5s", 3723.5)],
)
def test_a_deadline_is_seconds_or_units(text, seconds):
    deadline = load_config("demo", [f"checkpoint.deadline={text}"]).checkpoint.deadline
    assert seconds_of(deadline, "checkpoint.deadline") == seconds
    assert load_config("demo", ["checkpoint.deadline=null"]).checkpoint.deadline is None


@pytest.mark.parametrize("text", ["''", "soon", "5x", "-5", "1m2h", "h", ".inf"])
def test_no_deadline_is_refused_with_what_is_expected(text):
    with pytest.raises(UserError, match=r"checkpoint.deadline: found .*, expected seconds, or days, hours"):
        load_config("demo", [f"checkpoint.deadline={text}"])


def test_farms_and_the_preset_survive_being_written():
    overrides = ["decay.farms_rows=64", "decay.farms_grid=[2, 3]", "decay.preset=reference"]
    config = load_config("demo", overrides)
    assert config.decay.farms == Windows(64, 1.0, (2, 3))
    assert config_from_dict(yaml.safe_load(to_yaml(config))) == config


@pytest.mark.parametrize(
    "text",
    ["*.jsonl", "[ab]/x.jsonl", "{a,b}.jsonl", "0123", "12:30", "a #b.jsonl", "2024-01-01", "no", "1e3"],
)
def test_paths_and_patterns_are_taken_as_they_are(text):
    config = load_config(
        "demo", [f"data.source={text}", f"data.validation={text}", f"data.text_field={text}"]
    )
    assert (config.data.source, config.data.validation, config.data.text_field) == (text, text, text)
    assert load_config("demo", ["data.validation=null"]).data.validation is None
    assert load_config("demo", ["data.source='no'"]).data.source == "no"
