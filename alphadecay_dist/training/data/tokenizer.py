"""Text <-> token ids: what training, preparation and export ask of any tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from alphadecay_dist.errors import UserError


class Tokenizer(ABC):
    """A tokenizer; each document ends with its end-of-sequence token, if it has one.

    Attributes:
        files: as they came, by the paths that they have in a run's directory or a prepared corpus.
        fingerprint: SHA-256 of all that decides which ids a text gets.
        vocab_size: every id is smaller.
        eos: the id that ends documents; None ends none.
        pad: an id for places whose loss is not taken.
    """

    files: Mapping[str, bytes]
    fingerprint: str
    vocab_size: int
    eos: int | None
    pad: int

    @abstractmethod
    def encode(self, documents: list[str], threads: int = 1) -> list[list[int]]:
        """Token ids of each document, with the end of sequence last; ``threads`` -1 uses all cores.

        Raises:
            UserError: the tokenizer has no ids for a text.
        """

    @abstractmethod
    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""

    def cut(self, ids: list[int], most: int) -> list[int]:
        """A document's first ``most`` token ids; if it is cut, it still ends with the end of sequence."""
        if len(ids) > most and self.eos is not None:
            return [*ids[: most - 1], self.eos]
        return ids[:most]


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
