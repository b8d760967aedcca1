"""A run keeps what it was made of, and goes on with other files only where that was accepted."""

from __future__ import annotations

import json
import os
import shutil

import pytest

import train
from alphadecay_dist import cli
from alphadecay_dist.checkpoint.reader import newest, read
from alphadecay_dist.checkpoint.writer import STATE
from alphadecay_dist.commands import formats
from alphadecay_dist.training.data.corpus import open_corpora
from alphadecay_dist.training.data.sentencepiece_tokenizer import train_tokenizer
from alphadecay_dist.training.recipe import NFKC, DataConfig
from alphadecay_dist.training.state import saved_state
from alphadecay_dist.training.tasks.language.export import model_config
from tests.checkpoint.layouts import with_state
from tests.multirank import run_ranks
from tests.training.corpora import write_lines
from tests.training.errors import error_of_ranks
from tests.training.runs import ROOT, SIZES, left_behind, same_weights, tiny_options, train_on, without_times

pytestmark = pytest.mark.kills

ROWS = 90  # of a file


def options_in(folder, **overrides):
    """Options of a run from files that are all in one directory; more of them after the run."""
    own = {"data__pack": True, "train__steps": 6, "logging__sequences": True, **overrides}
    data = {"data.source": f"{folder}/texts/*.jsonl", "data.validation": f"{folder}/held_out.jsonl"}
    return [*tiny_options(folder, **own), *(f"--{key}={value}" for key, value in data.items())]


def engine_in(folder):
    return str(folder / "zero2.json")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A directory of files with a run of 3 of 6 updates, ``run``, and the same unbroken, ``whole``."""
    folder = tmp_path_factory.mktemp("begun") / "all"
    (folder / "texts").mkdir(parents=True)
    corpus, _ = open_corpora(DataConfig())
    texts = [text for _, text in corpus.rows(0, 0)]
    for number in range(4):
        part = texts[number * ROWS : (number + 1) * ROWS]
        write_lines(folder / "texts" / f"part-{number}.jsonl", ({"text": text} for text in part))
    write_lines(folder / "held_out.jsonl", ({"text": text} for text in texts[-20:]))
    shutil.copy(ROOT / "ds_configs" / "zero2.json", folder)
    options = options_in(folder)
    train_on(1, engine_in(folder), folder / "whole", options)
    train_on(1, engine_in(folder), folder / "run", [*options, "--train.stop_after=3"])
    return folder


@pytest.fixture
def moved(begun, tmp_path):
    """All of it at another place."""
    return shutil.copytree(begun, tmp_path / "moved")


def go_on(folder, *more, output="run", world_size=1):
    return train_on(world_size, engine_in(folder), folder / output, [*options_in(folder), *more])


def refused(folder, *more, output="run"):
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
    argv = [
        "--deepspeed",
        engine_in(folder),
        "--output_dir",
        str(folder / output),
        *options_in(folder),
        *more,
    ]
    line = error_of_ranks(argv, world_size=1)
    assert {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")} == before
    return line


def changed_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def same_run(found, folder):
    return without_times(found) == without_times(left_behind(folder / "whole")) and same_weights(
        folder / "run", folder / "whole"
    )


def more_files(folder):
    for name in ("c", "d"):
        shutil.copy(folder / "texts" / "part-0.jsonl", folder / "texts" / f"{name}.jsonl")


def cut(folder):
    path = folder / "texts" / "part-2.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))


def other_content(folder):
    """Another text of the same names and sizes."""
    path = folder / "texts" / "part-1.jsonl"
    path.write_text(path.read_text().replace("the", "eht"))


def other_tokenizer(folder):
    texts = (json.loads(line)["text"] for line in (folder / "texts" / "part-0.jsonl").open())
    (folder / "tiny.model").write_bytes(train_tokenizer(texts, 400, NFKC).proto)


def hold_out_more(folder):
    with (folder / "held_out.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')


def other_data(folder):
    more_files(folder)
    (folder / "texts" / "part-3.jsonl").unlink()
    cut(folder)
    other_content(folder)
    hold_out_more(folder)


def other_model(folder):
    """Another model of the same shapes."""
    changed_json(
        folder / "tiny.json",
        rope_theta=5e5,
        rope_scaling={"rope_type": "linear", "factor": 2.0},
        num_attention_heads=4,
        num_key_value_heads=4,
        hidden_act="gelu",
    )


CHANGES = {
    "data": (
        other_data,
        [
            "data.source: 2 files are new: c.jsonl, d.jsonl",
            "data.source: 1 file is missing: part-3.jsonl",
            "data.source part-1.jsonl: has other content",
            " bytes shorter",
            "data.validation held_out.jsonl: 17 bytes longer",
        ],
    ),
    "model": (
        other_model,
        [
            "tiny.json: rope_theta: found 500000.0, the run was begun with 10000.0",
            "tiny.json: rope_scaling: found {",
            "tiny.json: num_attention_heads: found 4, the run was begun with 2",
            "tiny.json: hidden_act: found 'gelu', the run was begun with 'silu'",
        ],
    ),
    "tokenizer": (other_tokenizer, ["tiny.model: is not the one that the run was begun with"]),
    "deepspeed": (
        lambda folder: changed_json(folder / "zero2.json", communication_data_type="bf16"),
        ["--deepspeed: communication_data_type: found 'bf16', the run was begun with None"],
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_files_are_refused_by_name_and_nothing_is_written(moved, kind):
    change, words = CHANGES[kind]
    change(moved)
    line = refused(moved)
    assert [word for word in words if word not in line] == [], line
    assert line.endswith(f"accept what is there now by --accept_changes={kind}"), line


def test_all_that_changed_is_said_at_once_and_accepting_a_part_is_not_enough(moved):
    more_files(moved)
    changed_json(moved / "tiny.json", rope_theta=5e5)
    line = refused(moved, "--accept_changes=data")
    assert "rope_theta" in line
    assert "2 files are new" not in line
    assert line.endswith("--accept_changes=data,model")


def test_a_run_that_moved_with_its_files_is_the_unbroken_one(moved):
    assert same_run(go_on(moved), moved)


def test_what_does_not_decide_the_updates_may_change(moved):
    """Another ZeRO stage, other buckets, the same model in other words, the data named otherwise."""
    shutil.copy(ROOT / "ds_configs" / "zero3.json", moved / "zero2.json")
    (moved / "tiny.json").rename(moved / "other.json")
    changed_json(moved / "other.json", rope_theta=10000, num_key_value_heads=SIZES["num_attention_heads"])
    (moved / "texts").rename(moved / "novels")
    names = [f"--model.name={moved}/other.json", f"--data.source={moved}/novels"]
    found = go_on(moved, *names, world_size=2)
    expected = left_behind(moved / "whole")
    assert found["sequences"] == expected["sequences"]
    assert [line["loss"] for line in found["metrics"]] == pytest.approx(
        [line["loss"] for line in expected["metrics"]], rel=1e-4
    )


def test_accepted_data_are_read_from_their_beginning_and_kept_from_then_on(moved):
    more_files(moved)
    found = go_on(moved, "--accept_changes=data", "--train.stop_after=5")
    assert [line["step"] for line in found["metrics"]] == [1, 2, 3, 4, 5]
    fresh = go_on(moved, "--train.stop_after=2", output="fresh")
    assert [line["sequences"] for line in found["sequences"][3:]] == [
        line["sequences"] for line in fresh["sequences"]
    ]
    inputs = json.loads((moved / "run" / "inputs.json").read_text())
    assert inputs["changes"] == [{"step": 3, "change": "data.source: 2 files are new: c.jsonl, d.jsonl"}]
    assert len(inputs["data"]["data.source"]) == 6
    assert len(go_on(moved)["metrics"]) == 6  # nothing has changed since


def test_other_held_out_documents_leave_the_position_in_the_data(moved):
    hold_out_more(moved)
    found = go_on(moved, "--accept_changes=data")
    assert found["sequences"] == left_behind(moved / "whole")["sequences"]


def from_within(folder, argv):
    os.chdir(folder)
    return train.main(argv)


def test_a_checkpoint_may_be_named_from_where_it_lies(moved):
    argv = ["--deepspeed", engine_in(moved), "--output_dir", "..", "--resume", "step-00000003"]
    codes = run_ranks(from_within, 1, moved / "run" / "checkpoints", [*argv, *options_in(moved)])
    assert codes == [0]
    assert same_weights(moved / "run", moved / "whole")


def test_rows_that_are_held_out_no_more_begin_the_data_anew(moved):
    changed = ("--data.validation=null", "--train.stop_after=5")
    found = go_on(moved, "--accept_changes=data", *changed)
    fresh = go_on(moved, *changed, output="fresh")
    assert found["sequences"][3:] == renumbered(fresh["sequences"][:2], 3)


def renumbered(lines, by):
    return [line | {"step": line["step"] + by} for line in lines]


def test_an_accepted_tokenizer_is_used_and_kept(moved):
    other_tokenizer(moved)
    found = go_on(moved, "--accept_changes=tokenizer", "--train.stop_after=4")
    assert (moved / "run" / "tokenizer.model").read_bytes() == (moved / "tiny.model").read_bytes()
    # What was left of a packed document is ids of the old one: the data begin anew.
    fresh = go_on(moved, "--train.stop_after=1", output="fresh")
    assert found["sequences"][3:] == renumbered(fresh["sequences"], 3)
    assert len(go_on(moved)["metrics"]) == 6


def test_export_has_the_model_that_was_trained(moved, capsys):
    changed_json(moved / "tiny.json", rope_theta=5e5, hidden_act="gelu")
    argv = ["export", str(moved / "run"), "--to", "hf", "--output"]
    assert cli.main([*argv, str(moved / "hf")]) == 0
    exported = json.loads((moved / "hf" / "config.json").read_text())
    assert exported["rope_parameters"]["rope_theta"] == 10000.0
    assert exported["hidden_act"] == "silu"
    assert cli.main([*argv, str(moved / "other"), "--model", str(moved / "tiny.json")]) == 2
    assert "hidden_act: found 'gelu', the run was begun with 'silu'" in capsys.readouterr().err
    go_on(moved, "--accept_changes=model")  # it is another model from here on, and says so
    found = formats.trained(moved / "run").checkpoint
    kept = model_config(found, saved_state(found), None)
    assert (kept.hidden_act, kept.rope_parameters["rope_theta"]) == ("gelu", 5e5)


def test_a_checkpoint_that_is_gone_on_with_elsewhere_compares_too(moved):
    more_files(moved)
    checkpoint = moved / "run" / "checkpoints" / "step-00000003"
    line = refused(moved, "--resume", str(checkpoint), output="elsewhere")
    assert "2 files are new" in line
    assert not (moved / "elsewhere" / "checkpoints").exists()


def test_a_tokenizer_that_was_trained_for_the_run_is_that_one_or_none(moved):
    """With "train" no file of the recipe has it: the run's own is looked at, or the same is trained again."""
    trained = [*options_in(moved), "--tokenizer.model=train"]
    path = moved / "trained" / "tokenizer.model"
    train_on(1, "2", moved / "trained", [*trained, "--train.stop_after=2"])
    own = path.read_bytes()
    other_tokenizer(moved)
    shutil.copy(moved / "tiny.model", path)
    argv = ["--deepspeed", engine_in(moved), "--output_dir", str(moved / "trained"), *trained]
    assert "tokenizer.model: the run's own, beside its checkpoints" in error_of_ranks(argv, world_size=1)
    path.unlink()
    train_on(1, "2", moved / "trained", [*trained, "--train.stop_after=3"])
    assert path.read_bytes() == own
    line = error_of_ranks([*argv, "--tokenizer.normalization=nmt_nfkc"], world_size=1)
    assert "tokenizer.normalization: found 'nmt_nfkc', the run was begun with 'none'; to go on" in line
    same = [*trained, "--tokenizer.normalization=none", "--train.stop_after=4"]
    assert len(train_on(1, "2", moved / "trained", same)["metrics"]) == 4


def stripped(run):
    """The run as it was left before anything was kept."""
    for folder in (run / "checkpoints").glob("step-*"):
        state = json.loads((folder / STATE).read_text())
        del (
            state["inputs"],
            state["config"]["tokenizer"]["normalization"],
            state["config"]["data"]["revision"],
        )
        with_state(folder, json.dumps(state).encode())
        assert saved_state(read(folder)).inputs is None
    (run / "inputs.json").unlink()


def test_a_checkpoint_from_before_is_gone_on_with_and_keeps_from_there_on(moved):
    stripped(moved / "run")
    assert same_run(go_on(moved), moved)
    kept = saved_state(newest(moved / "run" / "checkpoints")).inputs
    assert sorted(kept.data["data.source"]) == [f"part-{number}.jsonl" for number in range(4)]
    assert json.loads((moved / "run" / "inputs.json").read_text())["tokenizer"] == kept.tokenizer


def test_the_names_in_a_recipe_are_compared_for_a_checkpoint_from_before(moved):
    stripped(moved / "run")
    assert "data.source: found 'demo'" in refused(moved, "--data.source=demo")


def test_another_kind_of_data_is_refused(moved):
    line = refused(moved, "--data.source=demo", "--data.validation=null")
    assert "data.source: 4 files are missing: part-0.jsonl" in line


def test_prepared_data_are_compared_with_both_their_splits(moved):
    argv = ["data", "prepare", *options_in(moved), "--output"]
    assert cli.main([*argv, str(moved / "prepared")]) == 0
    hold_out_more(moved)
    assert cli.main([*argv, str(moved / "other")]) == 0
    go_on(moved, f"--data.prepared={moved}/prepared", "--train.stop_after=3", output="shards")
    (moved / "run").rename(moved / "text")
    (moved / "shards").rename(moved / "run")
    line = refused(moved, f"--data.prepared={moved}/other")
    assert "data.prepared validation: " in line
    assert "data.prepared train" not in line
    line = refused(moved, "--data.prepared=null")
    assert "data.prepared: found None, the run was begun with" in line
    go_on(moved, "--data.prepared=null", "--accept_changes=data")


def test_init_from_brings_its_tokenizer_and_stays_recorded(moved):
    assert cli.main(["export", str(moved / "run"), "--to", "hf", "--output", str(moved / "hf")]) == 0
    options = [f"--init_from={moved}/hf", "--tokenizer.model=train", "--train.steps=3"]
    go_on(moved, *options, "--train.stop_after=1", output="next")
    theirs = (moved / "hf" / "tokenizer.model").read_bytes()
    assert (moved / "next" / "tokenizer.model").read_bytes() == theirs
    inputs = json.loads((moved / "next" / "inputs.json").read_text())
    assert "model.safetensors" in inputs["init_from"]
    assert len(go_on(moved, *options, "--train.stop_after=2", output="next")["metrics"]) == 2
    assert len(go_on(moved, *options[1:], output="next")["metrics"]) == 3  # its weights are the run's by now
    (moved / "hf" / "tokenizer.model").unlink()
    go_on(moved, *options, "--train.stop_after=1", output="json")  # the tokenizer.json is left
    assert (moved / "json" / "tokenizer" / "tokenizer.json").is_file()
    (moved / "hf" / "tokenizer.json").write_text("{}")
    line = refused(moved, *options, output="none")
    assert "hf: tokenizer.json: not a tokenizer of the tokenizers library" in line
    assert "--tokenizer.model=PATH" in line
