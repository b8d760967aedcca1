"""Text <-> token ids: a sentencepiece model by path, from the hub, or trained on the corpus."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from alphadecay_dist.errors import UserError

TRAIN = "train"
TRAINING_CHARACTERS = 20_000_000  # enough for 32k pieces; the rest of a large corpus would only take time
# sentencepiece's result depends on its thread count: fixed, so that every machine trains the same model.
TRAINING_THREADS = 4


class Tokenizer:
    """A sentencepiece model; documents end with its end-of-sequence piece where it has one."""

    def __init__(self, proto: bytes) -> None:
        self.proto = proto
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        self.eos = self._processor.eos_id()
        self.pad = max(self._processor.pad_id(), 0)

    @property
    def vocab_size(self) -> int:
        """Number of pieces; every id is below it."""
        return self._processor.get_piece_size()

    def encode(self, documents: list[str], threads: int = 1) -> list[list[int]]:
        """Token ids of each document, the end of sequence last; ``threads`` -1 takes all cores."""
        ending = [self.eos] if self.eos >= 0 else []
        return [ids + ending for ids in self._processor.encode(documents, num_threads=threads)]

    def cut(self, ids: list[int], most: int) -> list[int]:
        """A document's first ``most`` token ids; one that is cut still ends with the end of sequence."""
        if len(ids) > most and self.eos >= 0:
            return [*ids[: most - 1], self.eos]
        return ids[:most]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""
        return self._processor.decode(ids)


def load_tokenizer(model: str) -> Tokenizer:
    """A tokenizer from a file or from a hub repository that holds ``spiece.model`` (such as t5-base).

    Raises:
        UserError: no such file, not a sentencepiece model, or the hub does not give it.
    """
    path = Path(model)
    if not os.path.isfile(path) and (path.suffix == ".model" or model.startswith((".", "/"))):
        raise UserError(f"tokenizer.model {model}: no such file")
    if not os.path.isfile(path):
        path = Path(_from_hub(model))
    try:
        tokenizer = Tokenizer(path.read_bytes())
        if not tokenizer.vocab_size:  # sentencepiece takes an empty file for a model
            raise RuntimeError("no pieces in it")
        return tokenizer
    except (OSError, RuntimeError) as error:
        raise UserError(f"tokenizer.model {model}: not a sentencepiece model: {error}") from None


def find_tokenizer(model: str, documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """The tokenizer that a recipe asks for: loaded, or trained on documents.

    Raises:
        UserError: see :func:`load_tokenizer` and :func:`train_tokenizer`.
    """
    return train_tokenizer(documents, vocab_size) if model == TRAIN else load_tokenizer(model)


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a unigram model with T5's special ids (pad 0, end of sequence 1, unknown 2) on a corpus.

    Args:
        documents: text; the first 20 million characters are used.
        vocab_size: pieces; fewer where the corpus does not carry as many.

    Raises:
        UserError: the corpus is too small for any model, or cannot be read.
    """
    proto = io.BytesIO()
    unreadable: list[UserError] = []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(documents, unreadable),
            model_writer=proto,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            character_coverage=0.99999,  # a small corpus keeps its rare capitals
            max_sentence_length=1 << 20,
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        if unreadable:
            raise unreadable[0] from None
        raise UserError(
            f"tokenizer.model train: sentencepiece cannot train {vocab_size} pieces on this corpus: "
            f"{' '.join(str(error).split())}; use more text or a smaller vocab_size in the model config"
        ) from None
    return Tokenizer(proto.getvalue())


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer whose ids the embedding cannot hold.

    Raises:
        UserError: a token id is outside the model's vocabulary.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"tokenizer.model: has token ids up to {tokenizer.vocab_size - 1}, the model's vocabulary ends "
            f"at {vocab_size - 1}: raise vocab_size in the model config or take a smaller tokenizer"
        )


def _lines(documents: Iterable[str], unreadable: list[UserError]) -> Iterator[str]:
    """Lines to train on; a user's error is kept aside, since sentencepiece wraps what it is given."""
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
