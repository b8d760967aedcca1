"""A tokenizer.json: the ids that transformers gives, the end of each document, and files that are refused."""

from __future__ import annotations

import json
import os
import shutil
import warnings

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.data.sentencepiece_tokenizer import SentencePieceTokenizer
from alphadecay_dist.training.data.tokenizer import check_vocabulary
from alphadecay_dist.training.data.tokenizer_files import (
    find_tokenizer,
    kept_in,
    load_tokenizer,
    of_files,
    tokenizer_in,
)
from alphadecay_dist.training.data.tokenizer_json import JSONTokenizer
from tests.training.corpora import number_tokenizer
from tests.training.hf_tokenizers import BEGIN, END, FORMS, GPT2_END, SIZE, change, gpt2, llama3, texts
from tests.training.processes import in_a_new_process

PIECES = [BEGIN, END, GPT2_END, "the ", "\n\n\t", "    ", "é", "字", "😀", "\x00", "</s>", "don't", "12345"]


@pytest.fixture(scope="module", params=FORMS)
def form(request, tmp_path_factory):
    """The directory of a tokenizer."""
    return FORMS[request.param](tmp_path_factory.mktemp(request.param) / "tokenizer")


@pytest.fixture(scope="module")
def pair(form):
    """A tokenizer, and what transformers makes of its files, with the names of special tokens as text."""
    return load_tokenizer(str(form)), AutoTokenizer.from_pretrained(form, split_special_tokens=True)


@pytest.fixture
def copy(form, tmp_path):
    return shutil.copytree(form, tmp_path / "copy")


def test_a_documents_ids_are_those_of_transformers_and_the_end(pair):
    ours, theirs = pair
    expected = [[*theirs(text).input_ids, theirs.eos_token_id] for text in texts()[::20]]
    assert ours.encode(texts()[::20]) == expected
    assert ours.encode(texts()[::20], threads=-1) == expected
    for text, ids in zip(texts()[::20], expected, strict=True):
        begin = 0 if ids[0] != theirs.bos_token_id else 1
        assert ours.decode(ids[begin:-1]) == text


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"])), max_size=6)
)
def test_any_text_has_the_ids_of_transformers_and_comes_back(pair, parts):
    ours, theirs = pair
    text = "".join(parts)
    (ids,) = ours.encode([text])
    assert ids == [*theirs(text).input_ids, theirs.eos_token_id]
    assert ids.count(ours.eos) == 1, "a text that names the end does not end"
    assert ours.decode([id for id in ids if id < SIZE and id != ours.eos]) == text


def test_special_tokens_of_a_text_are_tokens_where_the_config_says_so(form, copy):
    change(copy, "tokenizer_config.json", split_special_tokens=False)
    ours, theirs = load_tokenizer(str(copy)), AutoTokenizer.from_pretrained(form)
    text = f"one{theirs.eos_token}two"
    assert ours.encode([text]) == [[*theirs(text).input_ids, ours.eos]]
    assert ours.encode([text])[0].count(ours.eos) == 2
    assert ours.fingerprint != load_tokenizer(str(form)).fingerprint


def test_a_template_that_ends_the_text_ends_it_once(tmp_path):
    folder = llama3(tmp_path)
    tree = json.loads((folder / "tokenizer.json").read_text())
    ends = {"SpecialToken": {"id": END, "type_id": 0}}
    template = tree["post_processor"]["processors"][1]
    template["single"].append(ends)
    template["special_tokens"][END] = {"id": END, "ids": [SIZE + 1], "tokens": [END]}
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    (ids,) = load_tokenizer(str(folder)).encode(["one"])
    assert ids == AutoTokenizer.from_pretrained(folder)("one").input_ids
    assert ids[-1] == SIZE + 1
    assert ids.count(SIZE + 1) == 1


def test_nothing_is_cut_padded_or_left_to_chance(form, copy):
    tokenizer = tokenizers.Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=1000)
    tokenizer.save(str(copy / "tokenizer.json"))
    tree = json.loads((copy / "tokenizer.json").read_text())
    tree["model"]["dropout"] = 0.5
    (copy / "tokenizer.json").write_text(json.dumps(tree))
    found = load_tokenizer(str(copy))
    assert found.encode(texts()[:50]) == load_tokenizer(str(form)).encode(texts()[:50])
    assert found.encode(texts()[:50], threads=-1) == found.encode(texts()[:50])


def test_added_tokens_count(tmp_path):
    tokenizer = load_tokenizer(str(llama3(tmp_path)))
    assert (tokenizer.vocab_size, tokenizer.eos, tokenizer.pad) == (SIZE + 3, SIZE + 1, 0)
    check_vocabulary(tokenizer, SIZE + 3)
    with pytest.raises(UserError, match=rf"ids up to {SIZE + 2}, the model's vocabulary ends at {SIZE + 1}"):
        check_vocabulary(tokenizer, SIZE + 2)


ENDS = {  # changes of Llama 3's files, and the id that ends documents then
    "a dict in the config": (
        {
            "tokenizer_config.json": {
                "eos_token": {"__type": "AddedToken", "content": "<|eot_id|>"},
                "pad_token": END,
            }
        },
        {"special_tokens_map.json": None},
        SIZE + 2,
    ),
    "the map is the newer": (
        {"special_tokens_map.json": {"eos_token": {"content": "<|eot_id|>"}}},
        {},
        SIZE + 2,
    ),
    "the map is the older": (
        {
            "special_tokens_map.json": {"eos_token": "<|eot_id|>"},
            "tokenizer_config.json": {"added_tokens_decoder": {}},
        },
        {},
        SIZE + 1,
    ),
    "the first of several": (
        {"generation_config.json": {"eos_token_id": [SIZE + 2, SIZE]}},
        {"tokenizer_config.json": None, "special_tokens_map.json": None},
        SIZE + 2,
    ),
    "none": ({}, {"tokenizer_config.json": None, "special_tokens_map.json": None}, None),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_ends_a_document(tmp_path, name):
    changes, removed, eos = ENDS[name]
    folder = llama3(tmp_path)
    for file in removed:
        (folder / file).unlink()
    for file, values in changes.items():
        change(folder, file, **values)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.eos == eos
    (ids,) = tokenizer.encode(["the end"])
    assert (ids[-1] == eos) == (eos is not None)
    assert tokenizer.cut(ids, 3) == (ids[:3] if eos is None else [*ids[:2], eos])
    if eos is not None and "generation_config.json" not in changes:
        assert AutoTokenizer.from_pretrained(folder).eos_token_id == eos


def test_documents_without_an_end_are_a_warning(tmp_path):
    folder = llama3(tmp_path)
    options = [f"tokenizer.model={folder}"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_tokenizer(load_config("demo", options), [], SIZE)
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").unlink()
    with pytest.warns(UserWarning, match="has no end of sequence: documents follow each other without one"):
        find_tokenizer(load_config("demo", options), [], SIZE)


def test_file_directory_and_what_is_kept_are_one(form, tmp_path):
    whole = load_tokenizer(str(form))
    assert isinstance(whole, JSONTokenizer)
    kept = of_files(whole.files)
    for other in (load_tokenizer(f"{form}/tokenizer.json"), kept):
        assert (other.fingerprint, other.files, other.eos) == (whole.fingerprint, whole.files, whole.eos)
    for name, content in whole.files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        assert content == (form / path.name).read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(number_tokenizer().proto)
    assert kept_in(tmp_path, whole.fingerprint).fingerprint == whole.fingerprint
    assert kept_in(tmp_path, number_tokenizer().fingerprint).files == number_tokenizer().files
    assert kept_in(tmp_path / "none") is None


def test_a_json_of_another_name_is_read_alone(tmp_path):
    folder = llama3(tmp_path)
    shutil.copy(folder / "tokenizer.json", folder / "other.json")
    alone = load_tokenizer(str(folder / "other.json"))
    assert alone.eos is None
    assert list(alone.files) == ["tokenizer/tokenizer.json"]


def test_a_sentencepiece_model_counts_unless_the_json_has_more(tmp_path):
    folder = gpt2(tmp_path / "both")
    (folder / "tokenizer.model").write_bytes(number_tokenizer().proto)
    assert isinstance(load_tokenizer(str(folder)), JSONTokenizer)
    (folder / "tokenizer.model").write_bytes(b"of another kind")
    assert isinstance(load_tokenizer(str(folder)), JSONTokenizer)
    assert tokenizer_in(folder) == str(folder)
    (folder / "tokenizer.model").unlink()
    (folder / "spiece.model").write_bytes(number_tokenizer().proto)
    assert isinstance(load_tokenizer(str(folder)), SentencePieceTokenizer)
    assert tokenizer_in(folder) == str(folder / "spiece.model")
    assert tokenizer_in(tmp_path) is None


BROKEN = {
    "no JSON": ("tokenizer.json", b"{", "tokenizer.json: not a tokenizer of the tokenizers library"),
    "other JSON": ("tokenizer.json", b'{"model": {}}', "not a tokenizer of the tokenizers library"),
    "no text": ("tokenizer.json", b"\xff\xfe", "not a tokenizer of the tokenizers library"),
    "a config that is none": ("tokenizer_config.json", b"[1]", "found [1], expected a JSON object"),
    "a deep config": ("tokenizer_config.json", b"[" * 100_000, "tokenizer_config.json: not JSON"),
    "an end that is no text": ("special_tokens_map.json", b'{"eos_token": 3}', "eos_token is 3, expected"),
    "an end unknown": ("special_tokens_map.json", b'{"eos_token": "</s>"}', "eos_token '</s>' is not in"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(copy, name):
    file, content, words = BROKEN[name]
    (copy / file).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(copy))
    assert str(caught.value).startswith(f"tokenizer.model {copy}: ")
    assert words in str(caught.value)


def test_an_end_that_is_no_id_is_named(tmp_path):
    folder = llama3(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").unlink()
    for eos in (SIZE + 3, -1, "x", True, [[]]):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
        with pytest.raises(
            UserError, match=r"generation_config.json: eos_token_id .* is not in tokenizer.json"
        ):
            load_tokenizer(str(folder))


def test_what_has_no_tokenizer_json_says_how_to_get_one(tmp_path):
    tokenizer = tokenizers.Tokenizer.from_file(str(gpt2(tmp_path / "whole") / "tokenizer.json"))
    folder = tmp_path / "old"
    folder.mkdir()
    tokenizer.model.save(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["merges.txt", "vocab.json"]
    for name in (str(folder), f"{folder}/"):
        with pytest.raises(
            UserError, match=r"has vocab.json without tokenizer.json; write one by transformers"
        ):
            load_tokenizer(name)
    with pytest.raises(
        UserError, match=r"--init_from .*old: .* vocab.json without .*; or give one that fits"
    ):
        tokenizer_in(folder)
    with pytest.raises(UserError, match=r"has neither tokenizer.json nor tokenizer.model nor spiece.model"):
        load_tokenizer(str(tmp_path))


@pytest.mark.launcher
def test_a_fork_after_encoding_is_no_warning(tmp_path):
    form = gpt2(tmp_path / "tokenizer")
    code = (
        "from alphadecay_dist.training.data.tokenizer_files import load_tokenizer\n"
        f"tokenizer = load_tokenizer({str(form)!r})\n"
        "import os\n"
        "found = tokenizer.encode(['one two', 'three'])\n"
        "if os.fork() == 0:\n"
        "    print(tokenizer.encode(['one two', 'three']) == found, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()"
    )
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    done = in_a_new_process(code, tmp_path)
    assert (done.stdout.split(), done.stderr) == (["True"], "")
