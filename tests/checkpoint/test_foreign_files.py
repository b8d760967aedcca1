"""Of files with weights one whole set is read: what is missing, twice there or elsewhere is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from alphadecay_dist.training.tasks.language.model import build_on_meta, read_model_config
from alphadecay_dist.training.tasks.language.pretrained import values_from
from tests.foreign import UP, accepted, init_error, llama_weights, rows_of, spectrum_error, write
from tests.training.runs import SIZES

INDEX = "model.safetensors.index.json"
WEIGHTS = llama_weights()
TUNED = 14  # of its matrices, a row each
OTHER_NAMES = {f"layers.0.feed_forward.w{n}.weight": WEIGHTS[UP].clone() for n in (1, 3)}  # Mistral's own


def both(capsys, folder):
    """What the two doors say of a directory, as two lines."""
    return spectrum_error(capsys, folder), init_error(folder)


def all_say(lines, *words):
    for line in lines:
        assert all(str(word) in line for word in words), line


def saved(folder, count=4, stem="model", index=True, **values):
    """The weights in some files, named as transformers names them."""
    folder.mkdir(exist_ok=True)
    names = sorted(WEIGHTS)
    homes = {}
    for number in range(count):
        file = f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"
        own = names[number::count]
        save_file({name: WEIGHTS[name] * values.get("factor", 1) for name in own}, folder / file)
        homes |= dict.fromkeys(own, file)
    if index:
        write(folder / f"{stem}.safetensors.index.json", {"metadata": {}, "weight_map": homes})
    return folder


def test_a_whole_set_is_taken(tmp_path):
    assert len(rows_of(saved(tmp_path / "w"))) == TUNED
    accepted(tmp_path / "w")


@pytest.mark.parametrize("index", [True, False], ids=["index", "names alone"])
def test_a_file_that_is_missing_is_named(tmp_path, capsys, index):
    folder = saved(tmp_path / "w", index=index)
    name = "model-00003-of-00004.safetensors"
    (folder / name).unlink()
    all_say(both(capsys, folder), folder / name, "is missing", "fetch it again")


def test_all_files_but_the_index_are_missing(tmp_path, capsys):
    folder = saved(tmp_path / "w")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    all_say(both(capsys, folder), "model-00001-of-00004.safetensors: is missing", "3 more of its 4 files")


def test_pickles_are_held_to_their_index_too(tmp_path, capsys):
    names = sorted(WEIGHTS)
    homes = {name: f"pytorch_model-0000{1 + place % 2}-of-00002.bin" for place, name in enumerate(names)}
    folder = tmp_path / "w"
    folder.mkdir()
    for file in set(homes.values()):
        torch.save({name: WEIGHTS[name] for name in names if homes[name] == file}, folder / file)
    write(folder / "pytorch_model.bin.index.json", {"weight_map": homes})
    assert len(rows_of(folder, "--trust")) == TUNED
    accepted(folder, "checkpoint.trust=true")
    torch.save({"old": torch.zeros(3)}, folder / "pytorch_model_old.bin")
    assert len(rows_of(folder, "--trust")) == TUNED
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    all_say(both(capsys, folder), "pytorch_model-00002-of-00002.bin: is missing")


def test_a_second_set_beside_the_index_is_not_read(tmp_path):
    folder = saved(tmp_path / "w")
    before = rows_of(folder)
    save_file(OTHER_NAMES, folder / "consolidated.safetensors")
    save_file({UP: torch.zeros(172, 64)}, folder / "model_old.safetensors")
    assert rows_of(folder) == before
    accepted(folder)


def test_the_model_in_one_file_is_the_one_that_transformers_reads(tmp_path):
    folder = tmp_path / "w"
    folder.mkdir()
    save_file(WEIGHTS, folder / "model.safetensors")
    before = rows_of(folder)
    save_file({name: value * 3 for name, value in WEIGHTS.items()}, folder / "model_old.safetensors")
    assert rows_of(folder) == before
    shapes = build_on_meta(read_model_config(str(write(tmp_path / "own.json", SIZES)), 32))
    values = values_from(str(folder), shapes, trust=False)
    assert all(torch.equal(values(name), value) for name, value in WEIGHTS.items())


def test_of_two_sets_without_an_index_none_is_chosen(tmp_path, capsys):
    folder = saved(tmp_path / "w", index=False)
    save_file(OTHER_NAMES, folder / "consolidated.safetensors")
    lines = both(capsys, folder)
    all_say(lines, "several sets", "consolidated.safetensors", "model-00001-of-00004.safetensors", "no index")


def test_a_model_in_one_file_beside_the_index_of_others(tmp_path, capsys):
    folder = saved(tmp_path / "w")
    save_file(WEIGHTS, folder / "model.safetensors")
    all_say(both(capsys, folder), "two sets", "model.safetensors", INDEX, "remove one")


def test_a_name_that_two_files_have_is_refused(tmp_path, capsys):
    folder = tmp_path / "w"
    folder.mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        save_file(WEIGHTS, folder / name)
    all_say(both(capsys, folder), "a.safetensors", "b.safetensors", "lm_head.weight", "one set")


LIES = {
    "out of the directory": ("../../etc/passwd", "the name of a file in the same directory"),
    "an absolute path": ("/etc/passwd", "the name of a file in the same directory"),
    "a directory": ("..", "the name of a file in the same directory"),
    "another file": ("model-00001-of-00004.safetensors", "but it is in"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_is_names_and_nothing_else(tmp_path, capsys, lie):
    folder = saved(tmp_path / "w")
    index = json.loads((folder / INDEX).read_text())
    home, words = LIES[lie]
    name = sorted(WEIGHTS)[1]
    index["weight_map"][name] = home
    write(folder / INDEX, index)
    all_say(both(capsys, folder), INDEX, name, home, words)


def test_a_tensor_that_the_index_promises_must_be_there(tmp_path, capsys):
    folder = saved(tmp_path / "w")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.layers.2.mlp.up_proj.weight"] = "model-00001-of-00004.safetensors"
    write(folder / INDEX, index)
    all_say(both(capsys, folder), INDEX, "model.layers.2.mlp.up_proj.weight", "not there")


DAMAGED = {
    "cut short": '{"weight_map": {',
    "a list": "[1]",
    "no map": "{}",
    "an empty map": '{"weight_map": {}}',
    "no name": '{"weight_map": {"a": 3}}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("content", DAMAGED)
def test_an_index_that_is_damaged_is_one_line(tmp_path, capsys, content):
    folder = saved(tmp_path / "w")
    write(folder / INDEX, DAMAGED[content])
    all_say(both(capsys, folder), folder / INDEX, "fetch it again")


def test_a_config_that_is_damaged_is_one_line(tmp_path, capsys):
    folder = saved(tmp_path / "w")
    write(folder / "config.json", '{"num_attention_heads":')
    all_say(both(capsys, folder), folder / "config.json", "not JSON")
