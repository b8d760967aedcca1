"""A run's tokenizer as an export holds it: a tokenizer.json as it came, a sentencepiece model with one."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import sentencepiece

from alphadecay_dist.checkpoint.reader import Checkpoint
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data.sentencepiece_tokenizer import SENTENCEPIECE, SentencePieceTokenizer
from alphadecay_dist.training.data.tokenizer_files import kept_in
from alphadecay_dist.training.data.tokenizer_json import GENERATION, JSONTokenizer
from alphadecay_dist.training.state import SavedState
from alphadecay_dist.training.tasks.language.hf_tokenizer import (
    hf_tokenizer,
    hf_tokenizer_config,
    special_ids,
)

ROLES = ("bos", "eos", "pad")


class ExportedTokenizer(ABC):
    """What an export has of a tokenizer.

    Attributes:
        special_ids: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``; None where there is none.
        settings: what config.json says, so that AutoTokenizer reads the files as they are.
    """

    special_ids: dict[str, int | None]
    settings: dict[str, Any]

    @abstractmethod
    def files(self, longest: int) -> dict[str, bytes]:
        """The files by name.

        Args:
            longest: positions of the model.
        """


class ExportedSentencePiece(ExportedTokenizer):
    """A sentencepiece model, and a tokenizer.json that gives its ids."""

    def __init__(self, proto: bytes) -> None:
        self._proto = proto
        self._json = hf_tokenizer(proto)
        ids = special_ids(sentencepiece.SentencePieceProcessor(model_proto=proto))
        self.special_ids = {f"{role}_token_id": ids.get(role) for role in ROLES}
        self.settings = {}

    def files(self, longest: int) -> dict[str, bytes]:
        """The two, and the config of the second."""
        config = hf_tokenizer_config(self._proto, longest)
        return {
            "tokenizer.json": self._json.to_str(pretty=True).encode(),
            "tokenizer_config.json": f"{json.dumps(config, indent=2)}\n".encode(),
            SENTENCEPIECE: self._proto,
        }


class ExportedJSON(ExportedTokenizer):
    """The files of a tokenizer.json; of generation_config.json, which is the model's, the ids alone."""

    def __init__(self, tokenizer: JSONTokenizer) -> None:
        self._parts = tokenizer.parts
        ids = {role: tokenizer.id_of(role) for role in ROLES} | {"eos": tokenizer.eos}
        self.special_ids = {f"{role}_token_id": id for role, id in ids.items()}
        # Without a class AutoTokenizer takes the model's own, and builds that anew from the vocabulary.
        named = "tokenizer_class" in tokenizer.config
        self.settings = {} if named else {"tokenizer_class": "PreTrainedTokenizerFast"}

    def files(self, longest: int) -> dict[str, bytes]:
        """All as they came."""
        return {name: content for name, content in self._parts.items() if name != GENERATION}


def tokenizer_of(checkpoint: Checkpoint, state: SavedState) -> ExportedTokenizer:
    """The tokenizer of the run that a checkpoint is in.

    Raises:
        UserError: it is missing, cannot be read, or has no such form.
    """
    run: Path = checkpoint.folder.resolve().parents[1]
    try:
        tokenizer = kept_in(run, None if state.inputs is None else state.inputs.tokenizer)
    except UserError as error:
        raise UserError(f"{run}: {error}; export the run, or a checkpoint that is in one") from None
    if isinstance(tokenizer, JSONTokenizer):
        return ExportedJSON(tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer):
        return ExportedSentencePiece(tokenizer.proto)
    raise UserError(
        f"{run / SENTENCEPIECE}: cannot be read: no such file; export the run, or a checkpoint that is in one"
    )
