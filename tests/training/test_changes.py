"""Which files a run was begun with, in short, and what is said of a difference."""

from __future__ import annotations

import dataclasses
import os
import shutil

import pytest

from alphadecay_dist import UserError
from alphadecay_dist.training.changes import deepspeed_changes, refuse
from alphadecay_dist.training.data.corpus import find_files
from alphadecay_dist.training.fingerprint import SAMPLE, FileMark, marks_of
from alphadecay_dist.training.inputs import Inputs
from alphadecay_dist.training.recipe import Config, DataConfig, TokenizerConfig
from alphadecay_dist.training.tasks.language.changes import changes_of, tokenizer_change
from alphadecay_dist.training.tasks.language.model import config_of, read_model_config, values_of

KEPT = Inputs(
    model=values_of(read_model_config("llama_demo", 128)),
    tokenizer="5e",
    data={"data.source": {"a.jsonl": FileMark(120, "0f")}},
    revision=None,
    engine={"name": "deepspeed", "settings": {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}}},
    init_from=None,
)


def texts(now, kept=KEPT, config=None, before=None):
    changes = [
        *changes_of(now, kept, config or Config(), before or Config()),
        *deepspeed_changes(now, kept),
    ]
    return [change.text for change in changes]


def with_settings(**settings):
    return dataclasses.replace(KEPT, engine={"name": "deepspeed", "settings": settings})


def marks(source):
    return marks_of(str(source), find_files(str(source))[1])


@pytest.fixture
def corpus(tmp_path):
    """A short and a long file, in two directories."""
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "a.jsonl").write_bytes(b'{"text": "a"}\n')
    (tmp_path / "texts" / "deep" / "b.jsonl").write_bytes(os.urandom(9 * SAMPLE))
    return tmp_path / "texts"


def test_files_are_named_from_what_names_them_wherever_it_lies(corpus, tmp_path):
    found = marks(corpus)
    assert sorted(found) == ["a.jsonl", "deep/b.jsonl"]
    assert found["a.jsonl"].bytes == 14
    assert marks(f"{corpus}/**/*.jsonl") == found
    shutil.copytree(corpus, tmp_path / "with [brackets]")
    assert marks(tmp_path / "with [brackets]") == found
    assert marks(corpus / "a.jsonl") == {"a.jsonl": found["a.jsonl"]}


@pytest.mark.parametrize("place", [0, SAMPLE - 1, 4 * SAMPLE + SAMPLE // 2, 9 * SAMPLE - 1])
def test_a_byte_at_the_beginning_in_the_middle_or_at_the_end_makes_another_file(corpus, place):
    path = corpus / "deep" / "b.jsonl"
    before = marks(path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert marks(path) != before
    assert marks(path)["b.jsonl"].bytes == before["b.jsonl"].bytes


def test_a_file_that_is_gone_is_one_line(corpus):
    with pytest.raises(UserError, match=r"none.jsonl: cannot be read: No such file"):
        marks_of(str(corpus), [str(corpus / "none.jsonl")])


def test_the_same_inputs_have_no_difference():
    assert texts(dataclasses.replace(KEPT)) == []


def test_many_files_are_counted_and_some_named():
    many = {f"{number:02d}.jsonl": FileMark(1, "a") for number in range(8)}
    (text,) = texts(dataclasses.replace(KEPT, data={"data.source": {**many, "a.jsonl": FileMark(120, "0f")}}))
    assert text == (
        "data.source: 8 files are new: 00.jsonl, 01.jsonl, 02.jsonl, 03.jsonl, 04.jsonl and 3 more"
    )
    other = {name: FileMark(1, "b") for name in many}
    now, before = (dataclasses.replace(KEPT, data={"data.source": files}) for files in (other, many))
    found = texts(now, before)
    assert found[0] == "data.source 00.jsonl: has other content"
    assert found[-1] == "data.source: 3 more files have other content"
    assert len(found) == 6


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_optimization": {"stage": 3, "reduce_bucket_size": 7}, "bf16": {"enabled": True}},
        {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}, "steps_per_print": 3},
        {
            "zero_optimization": {"stage": 1, "zero_quantized_gradients": False},
            "bf16": {"enabled": True},
            "prescale_gradients": False,
            "communication_data_type": None,
            "compression_training": {"enabled": False, "bits": 8},
        },
    ],
    ids=["stage and buckets", "logging", "what is off"],
)
def test_what_a_deepspeed_json_may_change(settings):
    assert texts(with_settings(**settings)) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"gradient_predivide_factor": 2.0},
            "gradient_predivide_factor: found 2.0, the run was begun with None",
        ),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype: found 'bf16'"),
        (
            {"zero_optimization": {"zero_quantized_gradients": True}},
            "zero_optimization.zero_quantized_gradients: found True",
        ),
    ],
)
def test_what_it_may_not(settings, words):
    (text,) = texts(with_settings(**{"bf16": {"enabled": True}, **settings}))
    assert text.startswith(f"--deepspeed: {words}")


def test_another_engine_is_no_change_of_the_json():
    assert texts(dataclasses.replace(KEPT, engine={"name": "ddp", "settings": {"dtype": "float32"}})) == []


def test_c4_stays_with_its_commit():
    kept = dataclasses.replace(KEPT, data={}, revision="a" * 40)
    assert texts(kept, kept) == []
    (text,) = texts(dataclasses.replace(kept, revision="b" * 40), kept)
    assert text == f"data.revision: found {'b' * 40!r}, the run was begun with {'a' * 40!r}"
    (text,) = texts(
        KEPT, kept, Config(data=DataConfig(source="t/*.jsonl")), Config(data=DataConfig(source="c4"))
    )
    assert text == ("data.source: found 't/*.jsonl' (a.jsonl), the run was begun with 'c4'")


def test_a_tokenizer_is_compared_by_content_or_else_by_name():
    def change(sha256, now, before):
        configs = (Config(tokenizer=TokenizerConfig(name)) for name in (now, before))
        return tokenizer_change(sha256, KEPT, *configs)

    assert change("5e", "moved/other.model", "own.model") is None
    assert change("6f", "own.model", "own.model").kind == "tokenizer"
    assert change(None, "t5-base", "t5-base") is None
    assert change(None, "t5-base", "train").text == (
        "tokenizer.model: found 't5-base', the run was begun with 'train'"
    )


MISTRAL = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
MISTRAL |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("kind", "window", "found"),
    [
        ("mistral", None, []),  # was trained as a LLaMA, whose function it has
        ("mistral", 64, []),
        ("mistral", 16, ["found 'mistral', the run was begun with 'llama'"]),
        ("qwen2", None, ["found 'qwen2', the run was begun with 'llama'"]),
    ],
)
def test_another_architecture_is_a_change_of_the_model(kind, window, found):
    rope = {"rope_theta": 10000.0, "rms_norm_eps": 1e-6}
    kept = dataclasses.replace(KEPT, model=values_of(config_of("ours", MISTRAL | rope, 32)))
    own = values_of(
        config_of("theirs", {"model_type": kind, **MISTRAL, **rope, "sliding_window": window}, 32)
    )
    lines = [line for line in texts(dataclasses.replace(KEPT, model=own), kept) if "model_type" in line]
    assert len(lines) == len(found)
    assert all(text in line for text, line in zip(found, lines, strict=True))


def test_what_was_accepted_is_not_refused(tmp_path):
    now = with_settings(prescale_gradients=True, bf16={"enabled": True})
    changes = list(deepspeed_changes(now, KEPT))
    refuse(changes, frozenset({"deepspeed"}), tmp_path)
    with pytest.raises(UserError, match=r"--accept_changes=data,deepspeed$"):
        refuse(changes, frozenset({"data"}), tmp_path)


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e3}},
    ],
    ids=str,
)
def test_a_models_values_give_the_model_back(rope):
    sizes = {**KEPT.model, "rope_theta": None, "rope_scaling": None}
    sizes = {key: value for key, value in sizes.items() if value is not None} | rope
    config = config_of("x", sizes, 128)
    again = config_of("x", values_of(config), 128)
    assert again.to_dict() == config.to_dict()


def test_values_of_a_config_that_weights_do_not_need_may_change():
    model = {"hidden_act": "silu", "rope_theta": 1e4, "rope_scaling": None, "max_position_embeddings": 64}
    kept = dataclasses.replace(KEPT, model=model | {"initializer_range": 0.1, "pad_token_id": None})
    free = {
        "initializer_range": 0.02,
        "pad_token_id": 3,
        "max_position_embeddings": 128,
        "hidden_act": "swish",
    }
    assert texts(dataclasses.replace(KEPT, model=model | free), kept) == []
    for key, value in [("rope_theta", 5e5), ("hidden_act", "gelu"), ("rope_scaling", {"factor": 2.0})]:
        (text,) = texts(dataclasses.replace(KEPT, model=model | {key: value}), kept)
        assert f": {key}: found " in text
