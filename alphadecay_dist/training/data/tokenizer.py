"""Text <-> token ids: a sentencepiece model by path, from the hub, or trained on the corpus."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.recipe import AUTO, NFKC, NONE, Config

TRAIN = "train"
TRAINING_CHARACTERS = 20_000_000  # enough for 32k pieces; more of a large corpus would only take time
# sentencepiece's result depends on the number of threads; it is fixed, so all machines train the same model.
TRAINING_THREADS = 4
FILES = ("tokenizer.model", "spiece.model")  # names of sentencepiece models in checkpoint directories
OTHER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")  # tokenizers of other kinds
# How each normalization trains. NONE is LLaMA's: byte pair merges, and bytes for characters without a piece.
KINDS: dict[str, dict[str, Any]] = {
    NFKC: {"model_type": "unigram"},
    NONE: {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,  # indentation
        "byte_fallback": True,
        "user_defined_symbols": ["\n", "\t"],  # sentencepiece learns no piece that contains these
        # With these, names of special pieces can be encoded as text, in transformers' tokenizers too.
        "required_chars": "</>unkpads0123456789xABCDEF",
    },
}


class Tokenizer:
    """A sentencepiece model; documents end with its end-of-sequence piece, if it has one."""

    def __init__(self, proto: bytes) -> None:
        self.proto = proto
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        self.eos = self._processor.eos_id()
        self.pad = max(self._processor.pad_id(), 0)

    @property
    def vocab_size(self) -> int:
        """Number of pieces; every id is smaller."""
        return self._processor.get_piece_size()

    def encode(self, documents: list[str], threads: int = 1) -> list[list[int]]:
        """Token ids of each document, with the end of sequence last; ``threads`` -1 uses all cores."""
        ending = [self.eos] if self.eos >= 0 else []
        return [ids + ending for ids in self._processor.encode(documents, num_threads=threads)]

    def cut(self, ids: list[int], most: int) -> list[int]:
        """A document's first ``most`` token ids; if it is cut, it still ends with the end of sequence."""
        if len(ids) > most and self.eos >= 0:
            return [*ids[: most - 1], self.eos]
        return ids[:most]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""
        return self._processor.decode(ids)


def load_tokenizer(model: str) -> Tokenizer:
    """A tokenizer from a file, or from a hub repository with a ``spiece.model`` (such as t5-base).

    Raises:
        UserError: the file does not exist or is not a sentencepiece model, or the hub does not give it.
    """
    path = Path(model)
    if not os.path.isfile(path) and (path.suffix == ".model" or model.startswith((".", "/"))):
        raise UserError(f"tokenizer.model {model}: no such file")
    if not os.path.isfile(path):
        path = Path(_from_hub(model))
    try:
        tokenizer = Tokenizer(path.read_bytes())
        if not tokenizer.vocab_size:  # sentencepiece accepts an empty file as a model
            raise RuntimeError("no pieces in it")
        return tokenizer
    except (OSError, RuntimeError) as error:
        raise UserError(f"tokenizer.model {model}: not a sentencepiece model: {error}") from None


def tokenizer_in(folder: Path) -> Path | None:
    """The sentencepiece model of a checkpoint directory; None if it has no tokenizer.

    Raises:
        UserError: its tokenizer is of another kind.
    """
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    other = next((name for name in OTHER_FILES if (folder / name).is_file()), None)
    if found is None and other is not None:
        raise UserError(
            f"--init_from {folder}: its tokenizer is {other}, expected {' or '.join(FILES)} (sentencepiece), "
            "the kind that is read here; give such a model that fits its vocabulary as --tokenizer.model=PATH"
        )
    return found


def find_tokenizer(config: Config, documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """The tokenizer of a recipe: loaded, or trained on documents.

    Raises:
        UserError: see :func:`load_tokenizer` and :func:`train_tokenizer`.
    """
    if config.tokenizer.model != TRAIN:
        return load_tokenizer(config.tokenizer.model)
    return train_tokenizer(documents, vocab_size, normalization_of(config))


def normalization_of(config: Config) -> str:
    """The normalization with which a recipe trains a tokenizer: a key of KINDS."""
    if config.tokenizer.normalization != AUTO:
        return config.tokenizer.normalization
    return NFKC if config.data.source == "demo" else NONE


def train_tokenizer(documents: Iterable[str], vocab_size: int, normalization: str = NONE) -> Tokenizer:
    """Train a model with T5's special ids (pad 0, end of sequence 1, unknown 2) on a corpus.

    Args:
        documents: text; the first 20 million characters are used.
        vocab_size: number of pieces; fewer if the corpus does not support as many.
        normalization: ``none``, with which every text decodes to the original (except U+2581, sentencepiece's
            own sign for a space), or ``nmt_nfkc``.

    Raises:
        UserError: the corpus is too small for any model, has more characters than pieces, or cannot be read.
    """
    proto = io.BytesIO()
    unreadable: list[UserError] = []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(documents, unreadable),
            model_writer=proto,
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # a small corpus gets as many as it supports
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            character_coverage=0.99999,  # keeps the rare capitals of a small corpus
            max_sentence_length=1 << 20,
            num_threads=TRAINING_THREADS,
            minloglevel=2,
            **KINDS[normalization],
        )
    except RuntimeError as error:
        if unreadable:
            raise unreadable[0] from None
        reason = _reason(" ".join(str(error).split()), normalization)
        raise UserError(
            f"tokenizer.model train: cannot train {vocab_size} pieces on this corpus: {reason}"
        ) from None
    return Tokenizer(proto.getvalue())


def _reason(error: str, normalization: str) -> str:
    """Why sentencepiece failed to train, and what to do, from its own message."""
    few = re.search(r"smaller than required_chars\. \d+ vs (\d+)", error)
    if few:
        bytes_too = f"and 256 bytes (--tokenizer.normalization={NFKC} does without these) "
        return (
            f"its characters {bytes_too if normalization == NONE else ''}need {few[1]} pieces alone; raise "
            f"vocab_size in the model config to {few[1]} or more, or use text with fewer different characters"
        )
    if "sentences_.empty()" in error or "all_chars_count" in error:
        return "it has no text; use more text"
    return f"sentencepiece says: {error}"


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer whose ids exceed the embedding.

    Raises:
        UserError: a token id is outside the model's vocabulary.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"tokenizer.model: has token ids up to {tokenizer.vocab_size - 1}, the model's vocabulary ends "
            f"at {vocab_size - 1}: raise vocab_size in the model config or take a smaller tokenizer"
        )


def _lines(documents: Iterable[str], unreadable: list[UserError]) -> Iterator[str]:
    """Lines to train on; a UserError is also stored in ``unreadable``, because sentencepiece wraps errors."""
    characters = 0
    try:
        for document in documents:
            for line in document.splitlines():
                yield line
                characters += len(line)
            if characters > TRAINING_CHARACTERS:
                return
    except UserError as error:
        unreadable.append(error)
        raise


def _from_hub(repository: str) -> str:
    from huggingface_hub import hf_hub_download  # noqa: PLC0415  (slow, and seldom needed)

    try:
        return hf_hub_download(repository, "spiece.model")
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"tokenizer.model {repository}: not a file, and the hub did not give {repository}/spiece.model "
            f"({reason}); give the path of a sentencepiece model"
        ) from None
