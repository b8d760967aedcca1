"""Checkpoints of other makers are called what they are, and the command that is given converts them."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from alphadecay_dist import cli
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.resume import decide_start
from tests.engines.tiny import backward, engine_of
from tests.foreign import UP, init_error, llama_weights, rows_of, spectrum_error, write
from tests.multirank import run_ranks

SHAPES = [(172, 64), (61, 67)]


def export_error(capsys, path):
    capsys.readouterr()
    assert cli.main(["export", str(path), "--to", "hf", "--output", str(path.parent / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def resume_error(path):
    with pytest.raises(UserError) as caught:
        decide_start(path.parent / "run", load_config("demo"), str(path), overwrite=False, damaged={})
    return str(caught.value)


def at_every_door(capsys, path):
    """What spectrum, --init_from, export and --resume say of a path."""
    return spectrum_error(capsys, path), init_error(path), export_error(capsys, path), resume_error(path)


def converted(line, out, name="OUT"):
    """Run the command that a line gives."""
    command = line.split("`")[1].replace(name, str(out))
    program, *arguments = shlex.split(command)
    assert program == "python"
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return out


def saved_by_deepspeed(folder):
    """Inside a rank: a model after an update under ZeRO-3; the whole weights of rank 0."""
    engine, _, _ = engine_of(3, SHAPES)
    backward(engine)
    engine.step()
    engine.save_checkpoint(str(folder), tag="step-5")
    return engine._zero3_consolidated_16bit_state_dict()


@pytest.mark.launcher
@pytest.mark.ranks
def test_a_deepspeed_checkpoint_and_the_command_that_converts_it(tmp_path, capsys):
    folder = tmp_path / "ds"
    weights = run_ranks(saved_by_deepspeed, 2, folder)[0]
    for path in (folder, folder / "step-5", next((folder / "step-5").glob("*_optim_states.pt"))):
        for line in at_every_door(capsys, path):
            assert all(
                word in line for word in (f"{path}: is a DeepSpeed checkpoint (step-5)", "zero_to_fp32")
            )
    out = converted(spectrum_error(capsys, folder), tmp_path / "out")
    found = load_file(out / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert list(rows_of(out)) == list(weights)


@pytest.mark.launcher
@pytest.mark.parametrize("place", ["dcp", "dcp/pytorch_model_fsdp_0"])
def test_a_checkpoint_of_torch_distributed_and_the_command_that_converts_it(tmp_path, capsys, place):
    weights = llama_weights()
    dcp.save({"model": weights}, checkpoint_id=tmp_path / place)
    for path in (tmp_path / "dcp", tmp_path / place / "__0_0.distcp"):
        for line in at_every_door(capsys, path):
            assert all(word in line for word in (f"{path}: is a checkpoint of torch", "dcp_to_torch")), line
    out = converted(spectrum_error(capsys, tmp_path / "dcp"), tmp_path / "out.pt", "OUT.pt")
    assert len(rows_of(out, "--trust")) == 14


def test_what_is_not_there_is_called_so(tmp_path, capsys):
    for path in (tmp_path / "none", tmp_path / "none.safetensors", tmp_path / ("x" * 300)):
        for line in at_every_door(capsys, path):
            assert "no such file or directory" in line, line


def files(*names):
    def make(folder):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"x")

    return make


# Directories by what is in them, and the words that each door's line has.
KINDS = {
    "DeepSpeed without ZeRO": (
        files("global_step1/mp_rank_00_model_states.pt", "latest"),
        "the entry 'module'",
    ),
    "pipeline": (files("global_step1/layer_01-model_states.pt"), "is a DeepSpeed checkpoint (global_step1)"),
    "universal": (files("step5/zero/a.weight/fp32.pt", "latest_universal"), "DeepSpeed's universal"),
    "Meta": (files("consolidated.00.pth", "params.json"), "Meta's own format"),
    "Megatron": (files("latest_checkpointed_iteration.txt", "iter_10/a.pt"), "is a Megatron checkpoint"),
    "GGUF": (files("model.gguf"), "GGUF"),
    "adapter": (files("adapter_model.safetensors"), "is an adapter of another model"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_of_another_kind_is_called_what_it_is(tmp_path, capsys, kind):
    make, words = KINDS[kind]
    make(tmp_path / "w")
    for line in at_every_door(capsys, tmp_path / "w"):
        assert words in line, line


def test_a_directory_without_weights_says_what_it_may_have(tmp_path, capsys):
    folder = tmp_path / "out"
    (folder / "checkpoint-500").mkdir(parents=True)
    for line in (spectrum_error(capsys, folder), init_error(folder)):
        assert "found no weights, expected *.safetensors" in line, line
    save_file({UP: llama_weights()[UP]}, folder / "checkpoint-500" / "model.safetensors")
    for line in (spectrum_error(capsys, folder), init_error(folder)):
        assert f"give {folder / 'checkpoint-500'}" in line, line


def test_weights_are_no_run_and_a_run_is_not_weights(tmp_path, capsys):
    folder = tmp_path / "w"
    folder.mkdir()
    save_file({UP: llama_weights()[UP]}, folder / "model.safetensors")
    for path in (folder, folder / "model.safetensors"):
        for line in (export_error(capsys, path), resume_error(path)):
            assert all(word in line for word in ("has weights but no state of a run", "--init_from")), line
    index = write(folder / "model.safetensors.index.json", {"weight_map": {UP: "model.safetensors"}})
    assert "give the directory that it is in" in init_error(index)
