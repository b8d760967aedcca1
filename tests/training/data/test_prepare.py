"""Preparing a corpus: all of it or nothing, and the same bytes whatever cut it short."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist.cli import main
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data import prepare as preparing
from alphadecay_dist.training.data.prepare import prepare_corpus
from alphadecay_dist.training.data.prepared import read_manifest, verify
from tests.training.corpora import number_tokenizer, numbered, write_files, write_lines
from tests.training.preparations import VOCABULARY, recipe


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@settings(deadline=None, max_examples=20)
@given(kills=st.lists(st.integers(1, 12), max_size=5))
def test_a_killed_preparation_is_never_whole_and_goes_on_to_the_same_files(
    texts, prepared, tmp_path_factory, kills
):
    folder = tmp_path_factory.mktemp("killed") / "data"
    write = preparing.write_atomically
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "SHARD_TOKENS", 100)
        patch.setattr(preparing, "BATCH", 3)
        for kill in kills:
            left = [kill]

            def or_die(path, text, left=left):
                left[0] -= 1
                if not left[0]:
                    raise Killed
                write(path, text)

            patch.setattr(preparing, "write_atomically", or_die)
            try:
                prepare_corpus(recipe(texts), VOCABULARY, folder)
            except Killed:
                with pytest.raises(UserError, match="not finished"):
                    read_manifest(folder)
        patch.setattr(preparing, "write_atomically", write)
        prepare_corpus(recipe(texts), VOCABULARY, folder)
    files = {path.name: path.read_bytes() for path in prepared.iterdir()}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    verify(folder)


def test_a_finished_preparation_is_left_as_it_is(tmp_path, texts):
    folder = tmp_path / "data"
    prepare_corpus(recipe(texts), VOCABULARY, folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "lock"}
    prepare_corpus(recipe(texts), VOCABULARY, folder)
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != "lock"} == before


@pytest.mark.parametrize("finished", [True, False])
def test_two_preparations_are_not_mixed(tmp_path, texts, finished, monkeypatch):
    folder = tmp_path / "data"
    if not finished:
        monkeypatch.setattr(preparing, "_write_split", lambda *_: (_ for _ in ()).throw(Killed))
    with contextlib.suppress(Killed):
        prepare_corpus(recipe(texts), VOCABULARY, folder)
    for other, words in (
        ((recipe(texts, holdout=5), VOCABULARY), "source.holdout 4, found 5"),
        ((recipe(texts), VOCABULARY + 1), "tokenizer.vocabulary 64, found 65"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            prepare_corpus(*other, folder)
        assert "holds data prepared with" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"header": []}, "as header"),
        ({"shards": {"train": [{}], "validation": []}}, "has None as name"),
        ({"cursors": {"train": 3, "validation": None}}, "has 3 as train"),
        ({"cursors": {"train": {"file": 99}, "validation": None}}, "has None as epoch"),
    ],
)
def test_progress_that_cannot_be_is_one_line(tmp_path, texts, monkeypatch, change, words):
    folder = tmp_path / "data"
    monkeypatch.setattr(preparing, "_write_split", lambda *_: sys.exit())  # progress is written before
    with contextlib.suppress(SystemExit):
        prepare_corpus(recipe(texts), VOCABULARY, folder)
    monkeypatch.undo()
    path = folder / "progress.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=f"progress.json .*{words}.*empty the directory"):
        prepare_corpus(recipe(texts), VOCABULARY, folder)


def test_two_processes_cannot_prepare_the_same_directory(tmp_path, texts):
    (tmp_path / "data").mkdir()
    with (
        preparing._locked(tmp_path / "data"),
        pytest.raises(UserError, match="another process prepares data there"),
    ):
        prepare_corpus(recipe(texts), VOCABULARY, tmp_path / "data")


def test_the_command_prepares_a_recipe_with_changes(texts, tmp_path, capsys):
    model = tmp_path / "numbers.model"
    model.write_bytes(number_tokenizer().proto)
    argv = ["data", "prepare", "--output", str(tmp_path / "data"), f"--data.source={texts}"]
    assert main([*argv, f"--tokenizer.model={model}", "--data.holdout=4"]) == 0
    told = capsys.readouterr().out
    assert "train: 76 documents" in told
    assert f"--data.prepared={tmp_path / 'data'}" in told
    assert main([*argv, f"--tokenizer.model={model}", "--data.holdout=5"]) == 2
    assert main([*argv, "--data.sauce=5"]) == 2
    assert "did you mean 'source'" in capsys.readouterr().err
    recipe = tmp_path / "images.yaml"
    recipe.write_text("model: {task: vision, name: vit_tiny_patch16_224}\n")
    assert main(["data", "prepare", "--output", str(tmp_path / "no"), "--recipe", str(recipe)]) == 2
    assert "found model.task 'vision', expected 'language': text alone is prepared" in capsys.readouterr().err


def prepared_from(source, output, *options):
    model = output.parent / "numbers.model"
    model.write_bytes(number_tokenizer().proto)
    argv = ["data", "prepare", "--output", str(output), f"--data.source={source}", *options]
    return main([*argv, f"--tokenizer.model={model}"])


def test_the_command_counts_what_it_passes_over(tmp_path, capsys):
    texts = [text if row % 9 else None for row, text in enumerate(numbered(30))]
    path = write_lines(tmp_path / "a.jsonl.zst", ({"text": text} for text in texts))
    with pytest.warns(UserWarning, match="null in 'text'") as caught:
        assert prepared_from(path, tmp_path / "data", "--data.holdout=10") == 0
    assert any(": 4 rows so far are null" in str(warning.message) for warning in caught)
    assert "train: 24 documents" in capsys.readouterr().out  # row 9 is null, 19 and 29 are held out


def test_the_command_names_the_row_that_has_no_text(tmp_path, capsys):
    folder = write_files(tmp_path / "texts", [numbered(30), numbered(30)])
    path = write_lines(folder / "part-002.jsonl", [*({"text": text} for text in numbered(25)), {"text": 3}])
    assert prepared_from(folder, tmp_path / "data") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert f"data: {path}: row 25 (counted from 0) has a number in 'text', expected text" in line


def test_many_small_files_are_prepared_with_a_validation_set(tmp_path, capsys):
    folder = write_files(tmp_path / "texts", [[text] for text in numbered(120)])
    assert prepared_from(folder, tmp_path / "data") == 0
    told = capsys.readouterr().out
    assert "train: 119 documents" in told
    assert "validation: 1 document" in told


SLOWLY = """
import sys, time
from pathlib import Path
from alphadecay_dist.training.data import prepare
from alphadecay_dist.training.config import load_config
prepare.SHARD_TOKENS, prepare.BATCH = 100, 3
write = prepare.write_atomically
def slowly(path, text):
    time.sleep(float(sys.argv[1]))
    write(path, text)
prepare.write_atomically = slowly
prepare.prepare_corpus(load_config("demo", sys.argv[3:]), 64, Path(sys.argv[2]))
"""


@pytest.mark.kills
def test_a_preparation_that_is_killed_by_the_system_goes_on_to_the_same_files(texts, prepared, tmp_path):
    data = recipe(texts)
    options = [f"data.source={texts}", "data.holdout=4", "data.shuffle=5"]
    options.append(f"tokenizer.model={data.tokenizer.model}")

    def command(folder, pause):
        argv = [sys.executable, "-c", SLOWLY, str(pause), str(folder), *options]
        return subprocess.Popen(argv, stderr=subprocess.DEVNULL)

    broken = tmp_path / "broken"
    for shards in (1, 3):
        process = command(broken, 0.3)
        deadline = time.monotonic() + 60
        while len(list(broken.glob("*.ends"))) < shards + 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (broken / "manifest.json").exists()
        assert main(["data", "verify", str(broken)]) == 2
    assert command(broken, 0).wait(120) == 0
    whole = {path.name: path.read_bytes() for path in prepared.iterdir()}
    assert {path.name: path.read_bytes() for path in broken.iterdir()} == whole
