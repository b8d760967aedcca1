"""The tokenizer that transformers loads gives the ids of the sentencepiece model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alphadecay_dist import UserError
from alphadecay_dist.training.data.corpus import open_corpora
from alphadecay_dist.training.data.sentencepiece_tokenizer import SentencePieceTokenizer, train_tokenizer
from alphadecay_dist.training.recipe import NFKC, DataConfig
from alphadecay_dist.training.tasks.language.hf_tokenizer import hf_tokenizer, hf_tokenizer_config

TEXTS = [text for _, text in open_corpora(DataConfig())[0].rows(0, 0)]
# "</s>" so often that its parts are pieces.
CODE = ["</s> </s><0x0A>" * 200, *(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))]
NO_TEXT = ["<s>", "</s>", "<unk>", "<pad>"]
# No combining marks: those behind a character that is normalised away are lost, as the docs say.
WORDS = [
    *NO_TEXT,
    "the ",
    " of",
    "  ",
    "\n",
    "\t",
    " ",
    "\x85",
    "é",
    "字",
    "한",
    "😀",
    "ﬁ",
    "½",
    "ＡＢ",
    "▁",
    "<",
    "/s>",
    "<0x0A>",
    "\r\n",
    "\x00",
    "      ",
    "def f(x):\n    return x",
]


def trained(**options):
    proto = io.BytesIO()
    lines = (line for text in TEXTS[:200] for line in text.splitlines())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=proto, vocab_size=600, minloglevel=2, **options
    )
    return proto.getvalue()


MODELS = {
    "ours": lambda: train_tokenizer([*CODE, *TEXTS[:200]], 900).proto,
    "the demo's": lambda: train_tokenizer(TEXTS[:200], 600, NFKC).proto,
    "bpe": lambda: trained(model_type="bpe"),
    "LLaMA's": lambda: trained(
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    ),
    "markup": lambda: trained(model_type="unigram", required_chars="</>"),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """A sentencepiece model, and what AutoTokenizer makes of our files."""
    proto, folder = MODELS[request.param](), tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(hf_tokenizer(proto).to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps(hf_tokenizer_config(proto, 64)))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return SentencePieceTokenizer(proto), AutoTokenizer.from_pretrained(folder)


def test_real_text_gives_the_same_ids(pair):
    ours, theirs = pair
    for text, ids in zip(TEXTS[::40], ours.encode(TEXTS[::40]), strict=True):
        found = theirs(text).input_ids
        assert [*found, theirs.eos_token_id] == ids, "the end of a document is the caller's to add"
        if theirs.unk_token_id not in found:
            assert theirs.decode(found) == ours.decode(found)


def test_what_is_no_text_has_its_place(pair):
    ours, theirs = pair
    processor = sentencepiece.SentencePieceProcessor(model_proto=ours.proto)
    assert len(theirs) == ours.vocab_size
    for name in ("bos", "eos", "unk", "pad"):
        id = getattr(processor, f"{name}_id")()
        assert getattr(theirs, f"{name}_token_id") == (id if id >= 0 else None)
    some = theirs("the end").input_ids
    assert theirs.decode([*some, ours.eos], skip_special_tokens=True) == "the end"


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.sampled_from(WORDS), max_size=12))
def test_any_text_gives_the_same_ids(pair, words):
    ours, theirs = pair
    text = "".join(words)
    assert [*theirs(text).input_ids, ours.eos] == ours.encode([text])[0]


def test_a_model_of_words_is_refused():
    with pytest.raises(UserError, match="kind 3, expected unigram or bpe"):
        hf_tokenizer(trained(model_type="word", hard_vocab_limit=False))
