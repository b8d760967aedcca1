"""Recipes, the options of the command line, and models' configs."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import train
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import (
    config_from_dict,
    flat,
    load_config,
    read_yaml,
    recipe_names,
    to_yaml,
)
from alphadecay_dist.training.preflight import resolve
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.tasks.language.model import read_model_config
from tests.fuzz.drawn import ODD, accepted, changed, damaged, draws, snapshot
from tests.training.runs import SIZES

WHOLE = {name: read_yaml(name) for name in recipe_names()}
KEYS = [key for key, _ in flat(Config())]
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
SNIPPETS = [
    b"!!python/object/apply:os.getcwd []",
    b"!!python/name:os.system ''",
    b"&a [*a]",
    b"train: &a {steps: *a}",
    b"<<: *a",
    b"? [a]\n: b",
    b"train: {steps: 0x" + b"f" * 5000 + b"}",
    b"0x" + b"f" * 5000 + b": 1",
    b"train: {0x" + b"f" * 5000 + b": 1}",
    b"train: !!binary aGk=",
    b"train: !!set {a}",
    b"train: {steps: 2001-01-01}",
    b"--- 1\n--- 2",
    b"\t",
    b"%YAML 9.9\n---\n",
    BOMB.encode(),
    (BOMB + "train: *a59").encode(),
    (BOMB + "train: {steps: *a59}").encode(),
    (BOMB + "data: {source: *a59}").encode(),
]


def config_of(recipe, overrides=()):
    """Read, and written and read again the same."""
    config = load_config(recipe, overrides)
    assert config_from_dict(yaml.safe_load(to_yaml(config))) == config


TREES = st.sampled_from(sorted(WHOLE)).flatmap(lambda name: changed(WHOLE[name]))
TEXTS = st.sampled_from(sorted(WHOLE)).flatmap(lambda name: damaged(yaml.safe_dump(WHOLE[name]).encode()))


@draws(75)
@given(tree=TREES)
def test_a_recipe_that_was_changed(place, tree):
    (place / "a.yaml").write_text(
        yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="replace"
    )
    accepted(lambda: config_of(str(place / "a.yaml")))


@draws(75)
@given(content=TEXTS | st.sampled_from(SNIPPETS))
def test_a_recipe_that_is_hardly_yaml(place, content):
    (place / "a.yaml").write_bytes(content)
    accepted(lambda: config_of(str(place / "a.yaml")))


@pytest.mark.parametrize("content", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_recipe_that_bites(place, content):
    (place / "a.yaml").write_bytes(content)
    assert not accepted(lambda: config_of(str(place / "a.yaml")))
    assert not accepted(lambda: config_of("demo", [f"train.steps={content.decode()}"]))


VALUES = ODD.map(json.dumps) | st.sampled_from([s.decode() for s in SNIPPETS]) | st.text(max_size=20)
OPTIONS = st.one_of(
    st.builds("--{}={}".format, st.sampled_from(KEYS), VALUES),
    st.builds("--{}".format, st.sampled_from(KEYS)),
    st.builds("--{}.{}={}".format, st.text(max_size=5), st.text(max_size=5), VALUES),
    st.text(max_size=20),
)


@draws(75)
@given(st.lists(OPTIONS, min_size=1, max_size=3))
@example(["--train.seed=1" + "0" * 400])
@example(["--recipe=" + "x/" * 3000])
def test_options(options):
    def load():
        given = train.parse(options)
        config_of(given.recipe, given.overrides)

    if not {"--help", "-h"} & set(options):
        accepted(load)


def file_keys():
    """Keys of paths: what else is drawn for them would be looked for on this machine."""
    return {"data.source", "data.validation", "data.prepared"}


WHOLE_OPTIONS = st.one_of(
    st.builds("--{}={}".format, st.sampled_from(sorted(set(KEYS) - file_keys())), VALUES),
    st.sampled_from(["--data.source=none.txt", "--data.prepared=none", "--engine=ddp", "--data.source=\0"]),
)


@draws(60)
@given(options=st.lists(WHOLE_OPTIONS, min_size=1, max_size=2), sizes=changed(SIZES) | st.just(SIZES))
@example(options=["--model.name=/" + "x" * 5000], sizes=SIZES)
@example(options=["--train.global_batch=1" + "0" * 12, "--train.micro_batch=1" + "0" * 11], sizes=SIZES)
def test_a_whole_start(place, options, sizes):
    """All that is looked at before any rank meets another; nothing is written."""
    (place / "model.json").write_text(json.dumps(sizes))
    own = [f"--model.name={place / 'model.json'}", "--train.seq_len=32", f"--output_dir={place / 'run'}"]
    before = snapshot(place)
    accepted(lambda: resolve(train.parse([*own, *options])))
    assert snapshot(place) == before


@draws(50)
@given(
    content=changed(SIZES).map(lambda tree: json.dumps(tree).encode()) | damaged(json.dumps(SIZES).encode())
)
@example(json.dumps({**SIZES, "num_hidden_layers": 10**9}).encode())
@example(json.dumps({**SIZES, "hidden_act": "__class__"}).encode())
@example(json.dumps({**SIZES, "rope_scaling": {"rope_type": "linear", "factor": "x"}}).encode())
def test_a_models_config(place, content):
    (place / "model.json").write_bytes(content)
    accepted(lambda: read_model_config(str(place / "model.json"), 32))


def test_an_error_is_short_whatever_was_found():
    with pytest.raises(UserError) as caught:
        load_config("demo", [f"train.steps={BOMB}b: *a59"])
    assert len(str(caught.value)) < 1000
