"""Runs with a tokenizer.json: stopped and resumed, prepared, exported, begun again; and one from the hub."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import ThreadingHTTPServer

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alphadecay_dist import cli
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.data.corpus import open_corpora
from alphadecay_dist.training.data.prepare import prepare_corpus
from alphadecay_dist.training.data.prepared import open_prepared
from alphadecay_dist.training.data.tokenizer_files import load_tokenizer
from tests.training.corpora import write_lines
from tests.training.errors import error_of_ranks
from tests.training.fake_hub import Hub
from tests.training.hf_tokenizers import FORMS, SIZE, change, llama3, texts
from tests.training.processes import in_a_new_process
from tests.training.runs import same_weights, tiny_options, train_on, without_times

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]

STEPS = 4


def options_with(folder, form, **more):
    """Options of a tiny run with a tokenizer of this form."""
    if not (folder / "theirs").is_dir():
        FORMS[form](folder / "theirs")
    own = {"train__steps": STEPS, "data__pack": True, "logging__sequences": True, **more}
    return tiny_options(folder, tokenizer__model=str(folder / "theirs"), **own)


@pytest.fixture(scope="module", params=FORMS)
def begun(request, tmp_path_factory):
    """A directory with a run, ``whole``, and the first half of the same, ``run``; and its options."""
    folder = tmp_path_factory.mktemp(request.param)
    options = options_with(folder, request.param)
    train_on(1, "ddp", folder / "whole", options)
    train_on(1, "ddp", folder / "run", [*options, "--train.stop_after=2"])
    return folder, options


@pytest.fixture
def copy(begun, tmp_path):
    """The two runs, to be changed."""
    return shutil.copytree(begun[0], tmp_path / "copy"), begun[1]


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_resume_is_the_unbroken_run_without_the_files_that_were_named(copy):
    folder, options = copy
    assert files_of(folder / "run" / "tokenizer") == files_of(folder / "theirs")
    shutil.rmtree(folder / "theirs")
    elsewhere = [*options, f"--tokenizer.model={folder}/theirs"]
    assert "no such file" in error_of_ranks(["--output_dir", str(folder / "new"), *elsewhere], world_size=1)
    resumed = train_on(1, "ddp", folder / "run", elsewhere)
    whole = train_on(1, "ddp", folder / "whole", options)
    assert without_times(resumed) == without_times(whole)
    assert same_weights(folder / "run", folder / "whole")


def test_another_tokenizer_is_refused_or_accepted(copy):
    folder, options = copy
    change(folder / "theirs", "special_tokens_map.json", eos_token="a")
    argv = ["--engine", "ddp", "--output_dir", str(folder / "run"), *options]
    argv.append(f"--tokenizer.model={folder}/theirs")
    line = error_of_ranks(argv, world_size=1)
    assert "theirs: is not the one that the run was begun with (SHA-256)" in line
    assert "--accept_changes=tokenizer" in line
    train_on(1, "ddp", folder / "run", [*argv[4:], "--accept_changes=tokenizer"])
    assert files_of(folder / "run" / "tokenizer") == files_of(folder / "theirs")


def test_a_kept_tokenizer_that_was_changed_is_not_gone_on_with(copy):
    folder, options = copy
    change(folder / "run" / "tokenizer", "special_tokens_map.json", eos_token="a")
    argv = ["--engine", "ddp", "--output_dir", str(folder / "run"), *options]
    assert "the run's own, beside its checkpoints, is missing or not the one" in error_of_ranks(
        argv, world_size=1
    )


def test_an_export_has_the_tokenizer_as_it_came(begun, tmp_path):
    folder, options = begun
    output = tmp_path / "hf"
    assert cli.main(["export", str(folder / "whole"), "--to", "hf", "--output", str(output)]) == 0
    exported = files_of(output)
    for name, content in files_of(folder / "theirs").items():
        assert exported[name] == content
    theirs, before = AutoTokenizer.from_pretrained(output), AutoTokenizer.from_pretrained(folder / "theirs")
    assert theirs(texts()[:50]).input_ids == before(texts()[:50]).input_ids
    (ids,) = load_tokenizer(str(folder / "theirs")).encode(texts()[:1])
    assert [*theirs(texts()[0]).input_ids, theirs.eos_token_id] == ids
    config, generation = json.loads(exported["config.json"]), json.loads(exported["generation_config.json"])
    for role in ("bos", "eos"):
        named = getattr(before, f"{role}_token_id")
        assert config[f"{role}_token_id"] == generation[f"{role}_token_id"] == named is not None
    model = AutoModelForCausalLM.from_pretrained(output)
    some = torch.tensor([ids[:8]])
    assert model.generate(some, max_new_tokens=3, do_sample=False).shape[1] > 8
    again = [f"--init_from={output}", "--tokenizer.model=train", "--train.steps=1"]
    train_on(1, "ddp", tmp_path / "next", [*options, *again])
    assert files_of(tmp_path / "next" / "tokenizer").items() >= files_of(folder / "theirs").items()


def test_a_bare_tokenizer_json_is_exported_so_that_transformers_reads_it_as_it_is(tmp_path):
    options = options_with(tmp_path, "llama3", train__steps=1)
    (tmp_path / "theirs" / "tokenizer_config.json").unlink()
    train_on(1, "ddp", tmp_path / "run", options)
    output = tmp_path / "hf"
    assert cli.main(["export", str(tmp_path / "run"), "--to", "hf", "--output", str(output)]) == 0
    assert not (output / "tokenizer_config.json").exists()
    ours = load_tokenizer(str(tmp_path / "theirs")).encode(texts()[:50])
    for model in ("llama", "gemma"):  # whose own class would build another one of the vocabulary
        change(output, "config.json", model_type=model)
        found = AutoTokenizer.from_pretrained(output)(texts()[:50]).input_ids
        assert [[*ids, SIZE + 1] for ids in found] == ours


def a_few(folder):
    """A corpus of some of the demo's documents."""
    return write_lines(folder / "a.jsonl", ({"text": text} for text in texts()[:250]))


@pytest.mark.parametrize("form", FORMS)
def test_prepared_documents_are_those_of_the_text(tmp_path, form):
    options = [*options_with(tmp_path, form), f"--data.source={a_few(tmp_path)}"]
    config = load_config("demo", [option.removeprefix("--") for option in options])
    prepare_corpus(config, 512, tmp_path / "prepared")
    manifest = prepare_corpus(config, 512, tmp_path / "prepared")  # as it is
    shards, _ = open_prepared(str(tmp_path / "prepared"))
    documents = [text for _, text in open_corpora(config.data)[0].rows(0, 0)]
    expected = load_tokenizer(str(tmp_path / "theirs")).encode(documents)
    found = [shards.document(number).tolist() for number in range(shards.documents)]
    assert sorted(found) == sorted(expected)
    assert manifest.tokenizer["pieces"] == load_tokenizer(str(tmp_path / "theirs")).vocab_size
    assert files_of(tmp_path / "prepared" / "tokenizer") == files_of(tmp_path / "theirs")
    changed = shutil.copytree(tmp_path / "theirs", tmp_path / "changed")
    change(changed, "special_tokens_map.json", eos_token="a")
    argv = [*options, f"--data.prepared={tmp_path / 'prepared'}", f"--tokenizer.model={changed}"]
    line = error_of_ranks(["--output_dir", str(tmp_path / "run"), *argv], world_size=1)
    assert "is not the one that" in line
    assert f"--tokenizer.model={tmp_path / 'prepared' / 'tokenizer'}" in line


def test_a_run_from_prepared_data_is_evaluated_on_the_same_text(tmp_path):
    options = [*options_with(tmp_path, "llama3", train__steps=1), f"--data.source={a_few(tmp_path)}"]
    assert cli.main(["data", "prepare", "--output", str(tmp_path / "prepared"), *options]) == 0
    prepared = [*options, f"--data.prepared={tmp_path / 'prepared'}"]
    kept = tmp_path / "prepared" / "tokenizer"
    shards = train_on(1, "ddp", tmp_path / "shards", [*prepared, f"--tokenizer.model={kept}"])
    text = train_on(2, "fsdp2", tmp_path / "text", options)
    for key in ("loss", "tokens"):
        assert shards["eval"][0][key] == pytest.approx(text["eval"][0][key], rel=1e-6)
    assert files_of(tmp_path / "text" / "tokenizer") == files_of(tmp_path / "theirs")
    assert files_of(tmp_path / "shards" / "tokenizer") == files_of(tmp_path / "theirs")


FROM_HUB = """
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data.tokenizer_files import load_tokenizer
for name in ("some/tokenizer", "some/other"):
    try:
        print(load_tokenizer(name).fingerprint)
    except UserError as error:
        print(error)
"""


def test_a_name_is_that_of_a_repository_of_the_hub(tmp_path, monkeypatch):
    theirs = llama3(tmp_path / "theirs")
    monkeypatch.setattr(Hub, "files", files_of(theirs) | {"weights.bin": b"x" * 100}, raising=False)
    monkeypatch.setattr(Hub, "repository", "models/some/tokenizer")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        done = in_a_new_process(FROM_HUB, tmp_path, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "home"))
    finally:
        server.shutdown()
    found, refused = done.stdout.splitlines()
    assert found == load_tokenizer(str(theirs)).fingerprint
    assert refused.startswith("tokenizer.model some/other: not a file, and the hub did not give some/other")
    assert [*(tmp_path / "home").rglob("tokenizer.json")]
    assert not [*(tmp_path / "home").rglob("weights.bin")]
