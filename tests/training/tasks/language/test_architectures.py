"""Causal language models of several architectures: trained, resumed, exported, and begun from that."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from alphadecay_dist import cli
from alphadecay_dist.params.inventory import tuned_weights
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.data.batches import TrainingData
from alphadecay_dist.training.data.corpus import open_corpora
from alphadecay_dist.training.data.tokenizer_files import load_tokenizer
from alphadecay_dist.training.tasks.initial import seed_of
from alphadecay_dist.training.tasks.language.conversion import CONVERTS
from alphadecay_dist.training.tasks.language.initial_values import random_values
from alphadecay_dist.training.tasks.language.model import build_on_meta, read_model_config
from tests.foreign import rows_of
from tests.training.runs import final_weights, same_weights, tiny_options, train_on, without_times

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 104,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GPT2 = {
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 512,
    "n_positions": 64,
    "initializer_range": 0.1,
}
EXPERTS = {**SIZES, "num_experts_per_tok": 2, "moe_intermediate_size": 52, "decoder_sparse_step": 1}
# The architectures that are named in the documentation, each with what is its own.
ARCHITECTURES = {
    "llama": SIZES,
    "qwen2": SIZES,
    "qwen3": SIZES,
    "mistral": {**SIZES, "sliding_window": 16},
    "gpt2": GPT2,  # with its dropout
    "olmo2": SIZES,
    "gemma": {**SIZES, "pad_token_id": 3},
    "gemma2": {**SIZES, "sliding_window": 16, "query_pre_attn_scalar": 16, "pad_token_id": 3},
    "gemma3_text": {**SIZES, "sliding_window": 16, "query_pre_attn_scalar": 16, "pad_token_id": 3},
    "mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "output_router_logits": True},
}
MORE = ("qwen2", "gemma2", "gemma3_text")  # near to others: with --long
SERVED = [name for name in ARCHITECTURES if CONVERTS or name not in ("mixtral", "qwen3_moe")]
NAMES = [pytest.param(name, marks=[pytest.mark.long] if name in MORE else []) for name in SERVED]
STEPS, STOP, INTERVAL = 4, 2, 2


def options_of(folder: Path, kind: str, **more: object) -> list[str]:
    """A run of four updates with two refreshes; each document is a padded sequence of its own."""
    model = folder / "config.json"
    model.write_text(json.dumps({"model_type": kind, **ARCHITECTURES[kind]}))
    every = {"train__steps": STEPS, "decay__interval": INTERVAL, "checkpoint__every": STOP}
    return tiny_options(folder, model__name=model, data__pack=False, **every, **more)


@pytest.fixture(scope="module", params=NAMES)
def run(request, tmp_path_factory):
    """A run of one process, and its export."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    options = options_of(folder, kind)
    lines = train_on(1, "ddp", folder / "run", options)
    assert cli.main(["export", str(folder / "run"), "--to", "hf", "--output", str(folder / "hf")]) == 0
    return kind, folder, options, lines


def theirs(folder: Path) -> torch.nn.Module:
    """The model as transformers makes it of the same config, without this package."""
    values = json.loads((folder / "config.json").read_text())
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))


def first_update(folder: Path, options: list[str]):
    """The first update's micro-batches of a run in one process."""
    config = load_config("demo", [option.removeprefix("--") for option in options])
    tokenizer = load_tokenizer(str(folder / "tiny.model"))
    return TrainingData(
        open_corpora(config.data)[0], tokenizer, config.data, config.train, 0, 1
    ).next_update()


def own_loss(model: torch.nn.Module, batch) -> float:
    """The summed loss as transformers has it; with a load-balancing loss, of each sequence by itself."""
    total = 0.0
    rows = 1 if getattr(model.config, "output_router_logits", False) else len(batch.input_ids)
    for ids, labels in zip(batch.input_ids.split(rows), batch.labels.split(rows), strict=True):
        mask = {"attention_mask": (labels != -100).long()} if rows == 1 else {}
        loss = model(input_ids=ids, labels=labels, **mask).loss.detach()
        total += float(loss) * int((labels[:, 1:] != -100).sum())
    return total


def test_the_first_loss_is_that_of_transformers(run):
    _, folder, options, lines = run
    model = theirs(folder).train()
    shapes = build_on_meta(read_model_config(str(folder / "config.json"), 32))
    values = random_values(shapes, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values(name))
    batches = first_update(folder, options)
    torch.manual_seed(seed_of("dropout on rank 0", 0))
    expected = sum(own_loss(model, batch) for batch in batches) / sum(batch.targets for batch in batches)
    assert lines["metrics"][0]["loss"] == pytest.approx(expected, rel=2e-6)


def test_initial_weights_are_spread_as_the_architecture_says(run):
    _, folder, _, _ = run
    shapes = build_on_meta(read_model_config(str(folder / "config.json"), 32))
    values, again = random_values(shapes, 0), random_values(shapes, 0)
    expected = dict(theirs(folder).named_parameters())
    names = list(expected)
    assert names == [name for name, _ in shapes.named_parameters()]
    state = torch.get_rng_state()
    drawn = {name: again(name) for name in reversed(names)}
    assert torch.equal(torch.get_rng_state(), state)  # what dropout draws does not depend on it
    for name, parameter in expected.items():
        assert torch.equal(values(name), drawn[name])  # in whatever order
        if parameter.std() == 0:
            assert torch.equal(drawn[name], parameter), name
        else:
            close = 5 / parameter.numel() ** 0.5  # of two samples
            spread = float(parameter.detach().std())
            assert float(drawn[name].std()) == pytest.approx(spread, rel=close), name
            zero = (parameter == 0).all(-1)  # the row of a padding token
            assert torch.equal((drawn[name] == 0).all(-1), zero), name
    matrices = [name for name in names if expected[name].ndim > 1]
    assert not torch.equal(drawn[matrices[-1]], random_values(shapes, 1)(matrices[-1]))


def test_each_matrix_gets_a_decay(run):
    _, folder, _, lines = run
    weights = tuned_weights(theirs(folder))
    expected = {own.name: {part for unit in own.units() for part in own.parts(unit)} for own in weights}
    assert [line["step"] for line in lines["decay"]] == [0, INTERVAL]
    for line in lines["decay"]:
        rows = line["modules"]
        assert {name: {*row.get("parts", [name])} for name, row in rows.items()} == expected
        assert {row["status"] for row in rows.values()} == {"assigned"}
        assert len({row["weight_decay"] for row in rows.values()}) > 1


def test_spectrum_and_plan_know_the_same_matrices(run, capsys):
    _, folder, _, lines = run
    modules = lines["decay"][-1]["modules"]
    tuned = {part for name, module in modules.items() for part in module.get("parts", [name])}
    rows = {name.replace(".weight", "") for name in rows_of(folder / "run")}
    assert rows == tuned
    recipe = folder / "recipe.yaml"
    sizes = {"seq_len": 32, "steps": 1, "global_batch": 12, "micro_batch": 4}
    recipe.write_text(json.dumps({"model": {"name": str(folder / "config.json")}, "train": sizes}))
    capsys.readouterr()
    of_recipe = plan_of(capsys, "--recipe", recipe)
    assert set(of_recipe["owners"]) == set(plan_of(capsys, "--config", folder / "config.json")["owners"])
    assert {re.sub(r"(experts\.\w+)\.\d+", r"\1", name) for name in of_recipe["owners"]} == set(modules)


def plan_of(capsys, option: str, path: Path):
    """What alphadecay plan says of two ranks."""
    profile = path.parent / "machine.json"
    profile.write_text('{"gram": 1e12, "tridiagonal": 1e11}')
    options = ["--world_size", "2", "--sharding", "fsdp2", "--machine", str(profile), "--json"]
    assert cli.main(["plan", option, str(path), *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_resumed_run_is_the_unbroken_one(run, tmp_path):
    _, folder, options, lines = run
    check_resume(1, "ddp", folder / "run", tmp_path / "again", options, lines)


def check_resume(world_size: int, engine: str, run: Path, output: Path, options: list[str], lines) -> None:
    """Go on from a run's checkpoint elsewhere, and find the rest of that run again."""
    middle = run / "checkpoints" / f"step-{STOP:08d}"
    found = without_times(train_on(world_size, engine, output, [*options, f"--resume={middle}"]))
    expected = without_times(lines)
    for name in ("metrics", "eval", "decay"):
        assert found[name] == [line for line in expected[name] if line["step"] > STOP or line in found[name]]
        assert found[name][-1] == expected[name][-1]
    assert [line["step"] for line in found["metrics"]] == list(range(STOP + 1, STEPS + 1))
    assert same_weights(run, output)


def test_what_is_exported_is_what_was_trained(run):
    kind, folder, _, _ = run
    trained = theirs(folder).eval()
    weights = final_weights(folder / "run")
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            parameter.copy_(weights[name])
    found, told = AutoModelForCausalLM.from_pretrained(folder / "hf", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    config = json.loads((folder / "hf" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == (kind, [type(trained).__name__])
    ids = torch.arange(32)[None]
    with torch.no_grad():
        assert torch.equal(found.eval()(ids).logits, trained(ids).logits)
    trained.save_pretrained(folder / "theirs")
    names = [load_file(folder / own / "model.safetensors").keys() for own in ("hf", "theirs")]
    assert names[0] == names[1]


def test_a_run_begins_where_another_ended(run, tmp_path):
    _, folder, _, lines = run
    still = {"train__steps": 1, "optimizer__lr": 0, "data__pack": False}
    options = tiny_options(tmp_path, model__name=folder / "hf", **still)
    found = train_on(1, "ddp", tmp_path / "run", [*options, f"--init_from={folder / 'hf'}"])
    assert found["eval"][0]["loss"] == lines["eval"][-1]["loss"]


ON_RANKS = [("gpt2", "fsdp2"), ("mixtral", "3"), ("gemma3_text", "fsdp2")]
MORE_RANKS = [
    ("gpt2", "3"),
    ("mixtral", "fsdp2"),
    ("mixtral", "2"),
    ("qwen3_moe", "fsdp2"),
    ("qwen3_moe", "3"),
]
MORE_RANKS += [(kind, engine) for kind in ("qwen3", "olmo2", "gemma2") for engine in ("fsdp2", "3")]


@pytest.mark.parametrize(
    ("kind", "engine"), [*ON_RANKS, *(pytest.param(*own, marks=pytest.mark.long) for own in MORE_RANKS)]
)
def test_ranks_train_the_same_and_resume_exactly(tmp_path, kind, engine):
    if kind not in SERVED:
        pytest.skip("stacks of experts need transformers 5")
    options = options_of(tmp_path, kind)
    lines = train_on(2, engine, tmp_path / "run", options)
    check_resume(2, engine, tmp_path / "run", tmp_path / "again", options, lines)
    if kind != "gpt2":  # each rank draws its own dropout
        alone = train_on(1, "ddp", tmp_path / "alone", options)
        for ours, expected in zip(lines["metrics"], alone["metrics"], strict=True):
            assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert lines["eval"][0]["loss"] == pytest.approx(alone["eval"][0]["loss"], rel=1e-6)
