"""The tokenizer: trained with T5's ids, read from a file, or refused in one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.data.corpus import open_corpora
from alphadecay_dist.training.data.sentencepiece_tokenizer import SentencePieceTokenizer, train_tokenizer
from alphadecay_dist.training.data.tokenizer import check_vocabulary
from alphadecay_dist.training.data.tokenizer_files import find_tokenizer, load_tokenizer
from alphadecay_dist.training.recipe import NFKC, NONE, DataConfig

VOCABULARY = 512
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def novels():
    corpus, _ = open_corpora(DataConfig())
    return [text for _, text in corpus.rows(0, 0)][:400]


@pytest.fixture(scope="module")
def trained(novels):
    return train_tokenizer(novels, VOCABULARY, NFKC)


def test_a_trained_model_has_t5s_ids(trained):
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.proto)
    assert (processor.pad_id(), processor.eos_id(), processor.unk_id()) == (0, 1, 2)
    assert processor.bos_id() == -1
    assert (trained.pad, trained.eos) == (0, 1)
    assert trained.vocab_size == VOCABULARY


def test_documents_round_trip_and_end_with_eos(trained, novels):
    plain = [" ".join(text.split()) for text in novels if text.isascii() and text[0].isalpha()]
    known = [text for text in plain if 2 not in trained.encode([text])[0]]
    assert len(known) > 100  # so few pieces leave the rarest capitals out
    for text, ids in zip(known, trained.encode(known), strict=True):
        assert ids[-1] == trained.eos
        assert trained.eos not in ids[:-1]
        assert 0 <= min(ids) <= max(ids) < VOCABULARY
        assert trained.decode(ids[:-1]) == text


def test_a_character_never_seen_is_unknown(trained):
    assert 2 in trained.encode(["漢"])[0]


@pytest.mark.launcher
def test_training_twice_gives_the_same_bytes_also_in_another_process(trained, novels, tmp_path):
    assert train_tokenizer(novels, VOCABULARY, NFKC).proto == trained.proto
    code = (
        "import sys\n"
        "from alphadecay_dist.training.recipe import DataConfig\n"
        "from alphadecay_dist.training.data.corpus import open_corpora\n"
        "from alphadecay_dist.training.data.sentencepiece_tokenizer import train_tokenizer\n"
        "texts = [text for _, text in open_corpora(DataConfig())[0].rows(0, 0)][:400]\n"
        f"open(sys.argv[1], 'wb').write(train_tokenizer(texts, {VOCABULARY}, {NFKC!r}).proto)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True, timeout=120)
    assert (tmp_path / "again").read_bytes() == trained.proto


def test_a_model_file_gives_the_model(trained, tmp_path):
    path = tmp_path / "any name"
    path.write_bytes(trained.proto)
    assert load_tokenizer(str(path)).proto == trained.proto


@pytest.mark.parametrize("name", ["none.model", "none"])
def test_a_missing_file_is_named_and_not_looked_for_on_the_hub(tmp_path, name):
    with pytest.raises(UserError, match=rf"tokenizer\.model .*/{name}: no such file or directory"):
        load_tokenizer(str(tmp_path / name))


@pytest.mark.parametrize("content", [b"", b"no model at all" * 20])
def test_a_file_that_is_no_sentencepiece_model_is_named(tmp_path, content):
    path = tmp_path / "text.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.model .*text\.model: not a sentencepiece model"):
        load_tokenizer(str(path))


@pytest.mark.launcher
def test_a_hub_that_does_not_answer_is_one_clear_line():
    code = (
        "from alphadecay_dist.errors import UserError\n"
        "from alphadecay_dist.training.data.tokenizer_files import load_tokenizer\n"
        "try:\n    load_tokenizer('t5-base')\n"
        "except UserError as error:\n    print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=True,
    )
    (line,) = found.stdout.splitlines()
    assert line.startswith("tokenizer.model t5-base: not a file, and the hub did not give t5-base (")
    assert line.endswith("give the path of a sentencepiece model or a tokenizer.json")


def test_ids_outside_the_models_vocabulary_are_refused(trained):
    check_vocabulary(trained, VOCABULARY)
    with pytest.raises(
        UserError, match=r"ids up to 511, the model's vocabulary ends at 510: raise vocab_size"
    ):
        check_vocabulary(trained, VOCABULARY - 1)


@pytest.mark.parametrize(("normalization", "most"), [(NFKC, 100), (NONE, 256 + 100)])
def test_a_small_corpus_gives_fewer_pieces_than_asked_for(normalization, most):
    tokenizer = train_tokenizer(["one two three two one"], 1000, normalization)
    assert 3 < tokenizer.vocab_size < most
    assert tokenizer.decode(tokenizer.encode(["two three"])[0][:-1]) == "two three"


@pytest.mark.parametrize("documents", [[], [""], ["   ", "\n\n"]])
def test_a_corpus_without_text_is_a_users_error(documents):
    with pytest.raises(UserError, match=r"cannot train 100 pieces on this corpus: it has no text; use more"):
        train_tokenizer(documents, 100, NFKC)


@pytest.mark.parametrize(
    ("normalization", "words"),
    [
        (
            NFKC,
            r"its characters need 504 pieces alone; raise vocab_size in the model config to 504 or more, ",
        ),
        (
            NONE,
            r"its characters and 256 bytes \(--tokenizer.normalization=nmt_nfkc does without these\) need ",
        ),
    ],
)
def test_fewer_pieces_than_characters_says_how_many_are_needed(normalization, words):
    letters = ["".join(chr(0x4E00 + i) for i in range(500))] * 3
    with pytest.raises(UserError, match=rf"cannot train 100 pieces on this corpus: {words}") as caught:
        train_tokenizer(letters, 100, normalization)
    assert "use more text" not in str(caught.value)
    needed = int(re.search(r"to (\d+) or more", str(caught.value))[1])
    assert train_tokenizer(letters, needed, normalization).vocab_size == needed


@pytest.fixture(scope="module")
def exact(novels):
    """A tokenizer as users get it for their own text: here code and novels."""
    code = [path.read_text() for path in sorted((ROOT / "alphadecay_dist" / "training").glob("*.py"))]
    return train_tokenizer([*code, *novels], 1000)


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return x",
        "if a:\n\tb\n\n\n\t\tc\t\n",
        "one\r\ntwo\r\n",
        "  before, between  and   behind    ",
        "\n",
        "    ",
        "",
        "\U0001f600\u200d\u2764\ufe0f \u6f22\u5b57 e\u0301\xe9 \ufb01 \uff21 \xbd",
        "".join(chr(code) for code in (*range(32), *range(127, 161), 0x2028, 0x2029, 0xFEFF)),
        "</s><unk><pad><0x0A><s>",
    ],
    ids=ascii,
)
def test_text_comes_back_as_it_was(exact, text):
    ids = exact.encode([text])[0]
    assert exact.decode(ids[:-1]) == text
    assert not {exact.eos, exact.pad, 2} & {*ids[:-1]}


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_any_text_comes_back_as_it_was(exact, text):
    assert exact.decode(exact.encode([text])[0][:-1]) == text


def test_indentation_is_cheap(exact):
    assert len(exact.encode(["        return x"])[0]) < len("        return x") / 2


@pytest.mark.parametrize(
    ("options", "exactly"),
    [
        ([], False),
        (["data.source=mine.txt"], True),
        (["data.source=mine.txt", "tokenizer.normalization=nmt_nfkc"], False),
        (["tokenizer.normalization=none"], True),
    ],
)
def test_the_demo_alone_has_its_own_tokenizer(novels, options, exactly):
    tokenizer = find_tokenizer(load_config("demo", options), novels, 600)
    assert (tokenizer.decode(tokenizer.encode(["a\n  b"])[0][:-1]) == "a\n  b") == exactly


def test_an_error_of_the_corpus_comes_through_as_it_is():
    def broken():
        yield "some text"
        raise UserError("data: the third file is broken")

    with pytest.raises(UserError, match=r"^data: the third file is broken$"):
        train_tokenizer(broken(), 100)


def test_a_model_without_eos_or_pad_ends_nothing_and_pads_with_0(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["one two three"] * 10),
        model_prefix=str(tmp_path / "m"),
        vocab_size=50,
        hard_vocab_limit=False,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer((tmp_path / "m.model").read_bytes())
    assert (tokenizer.eos, tokenizer.pad) == (None, 0)
    assert tokenizer.decode(tokenizer.encode(["two one"])[0]) == "two one"
