"""The tokenizer: trained with T5's ids, read from a file, or refused in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest
import sentencepiece

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.corpus import open_corpora
from alphadecay_dist.training.recipe import DataConfig
from alphadecay_dist.training.tokenizer import Tokenizer, check_vocabulary, load_tokenizer, train_tokenizer

VOCABULARY = 512


@pytest.fixture(scope="module")
def novels():
    corpus, _ = open_corpora(DataConfig())
    return [text for _, text in corpus.rows(0, 0)][:400]


@pytest.fixture(scope="module")
def trained(novels):
    return train_tokenizer(novels, VOCABULARY)


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


def test_training_twice_gives_the_same_bytes_also_in_another_process(trained, novels, tmp_path):
    assert train_tokenizer(novels, VOCABULARY).proto == trained.proto
    code = (
        "import sys\n"
        "from alphadecay_dist.training.recipe import DataConfig\n"
        "from alphadecay_dist.training.corpus import open_corpora\n"
        "from alphadecay_dist.training.tokenizer import train_tokenizer\n"
        "texts = [text for _, text in open_corpora(DataConfig())[0].rows(0, 0)][:400]\n"
        f"open(sys.argv[1], 'wb').write(train_tokenizer(texts, {VOCABULARY}).proto)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True, timeout=120)
    assert (tmp_path / "again").read_bytes() == trained.proto


def test_a_model_file_gives_the_model(trained, tmp_path):
    path = tmp_path / "any name"
    path.write_bytes(trained.proto)
    assert load_tokenizer(str(path)).proto == trained.proto


@pytest.mark.parametrize("name", ["none.model", "none"])
def test_a_missing_file_is_named_and_not_looked_for_on_the_hub(tmp_path, name):
    with pytest.raises(UserError, match=rf"tokenizer\.model .*/{name}: no such file"):
        load_tokenizer(str(tmp_path / name))


@pytest.mark.parametrize("content", [b"", b"no model at all" * 20])
def test_a_file_that_is_no_sentencepiece_model_is_named(tmp_path, content):
    path = tmp_path / "text.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.model .*text\.model: not a sentencepiece model"):
        load_tokenizer(str(path))


def test_a_hub_that_does_not_answer_is_one_clear_line():
    code = (
        "from alphadecay_dist.errors import UserError\n"
        "from alphadecay_dist.training.tokenizer import load_tokenizer\n"
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
    assert line.startswith(
        "tokenizer.model t5-base: not a file, and the hub did not give t5-base/spiece.model"
    )
    assert line.endswith("give the path of a sentencepiece model")


def test_ids_outside_the_models_vocabulary_are_refused(trained):
    check_vocabulary(trained, VOCABULARY)
    with pytest.raises(
        UserError, match=r"ids up to 511, the model's vocabulary ends at 510: raise vocab_size"
    ):
        check_vocabulary(trained, VOCABULARY - 1)


def test_a_small_corpus_gives_fewer_pieces_than_asked_for():
    tokenizer = train_tokenizer(["one two three two one"], 1000)
    assert 3 < tokenizer.vocab_size < 100
    assert tokenizer.decode(tokenizer.encode(["two three"])[0][:-1]) == "two three"


@pytest.mark.parametrize("documents", [[], [""], ["   ", "\n\n"]])
def test_a_corpus_without_text_is_a_users_error(documents):
    with pytest.raises(UserError, match=r"tokenizer\.model train: .*100 pieces.*use more text"):
        train_tokenizer(documents, 100)


def test_fewer_pieces_than_characters_is_a_users_error():
    letters = "".join(chr(0x4E00 + i) for i in range(500))
    with pytest.raises(UserError, match=r"cannot train 100 pieces on this corpus"):
        train_tokenizer([letters] * 3, 100)


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
    tokenizer = Tokenizer((tmp_path / "m.model").read_bytes())
    assert (tokenizer.eos, tokenizer.pad) == (-1, 0)
    assert tokenizer.decode(tokenizer.encode(["two one"])[0]) == "two one"
