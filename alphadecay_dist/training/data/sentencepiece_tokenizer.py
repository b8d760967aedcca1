"""A sentencepiece model as a tokenizer, and how one is trained on a corpus."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

import sentencepiece

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data.tokenizer import Tokenizer
from alphadecay_dist.training.recipe import AUTO, NFKC, NONE, Config

SENTENCEPIECE = "tokenizer.model"  # in runs and prepared corpora
TRAINING_CHARACTERS = 20_000_000  # enough for 32k pieces; more of a large corpus would only take time
# sentencepiece's result depends on the number of threads; it is fixed, so all machines train the same model.
TRAINING_THREADS = 4
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


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model.

    Args:
        proto: the content of its file.

    Raises:
        UserError: it is not such a model.
    """

    def __init__(self, proto: bytes) -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        except RuntimeError as error:
            raise UserError(f"not a sentencepiece model: {error}") from None
        self.vocab_size = self._processor.get_piece_size()
        if not self.vocab_size:  # sentencepiece accepts an empty file as a model
            raise UserError("not a sentencepiece model: no pieces in it")
        self.proto = proto
        self.files = {SENTENCEPIECE: proto}
        self.fingerprint = hashlib.sha256(proto).hexdigest()
        eos = self._processor.eos_id()
        self.eos = eos if eos >= 0 else None
        self.pad = max(self._processor.pad_id(), 0)

    def encode(self, documents: list[str], threads: int = 1) -> list[list[int]]:
        """See :meth:`Tokenizer.encode`; names of special pieces are text."""
        ending = [] if self.eos is None else [self.eos]
        return [ids + ending for ids in self._processor.encode(documents, num_threads=threads)]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""
        return self._processor.decode(ids)


def normalization_of(config: Config) -> str:
    """The normalization with which a recipe trains a tokenizer: a key of KINDS."""
    if config.tokenizer.normalization != AUTO:
        return config.tokenizer.normalization
    return NFKC if config.data.source == "demo" else NONE


def train_tokenizer(
    documents: Iterable[str], vocab_size: int, normalization: str = NONE
) -> SentencePieceTokenizer:
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
    return SentencePieceTokenizer(proto.getvalue())


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
