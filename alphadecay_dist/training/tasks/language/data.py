"""The text that a recipe names: opened, tokenized, cut into batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data.batches import (
    Batch,
    EvaluationData,
    Source,
    TrainingData,
    open_data,
    validation_sequences,
)
from alphadecay_dist.training.data.corpus import Corpus, demo_files
from alphadecay_dist.training.data.prepared import Shards
from alphadecay_dist.training.data.sources import find_files
from alphadecay_dist.training.data.tokenizer import Tokenizer, check_vocabulary
from alphadecay_dist.training.data.tokenizer_files import TRAIN, find_tokenizer, kept_in, of_files
from alphadecay_dist.training.fingerprint import FileMark, Marks, marks_of
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.recipe import Config, DataConfig
from alphadecay_dist.training.tasks.data import Data, Loaders, Previous

FIELD = "tokenizer.model"  # of the recipe


class Text(Data):
    """The training and the validation text, or prepared shards of them.

    Args:
        config: the recipe.
        vocabulary: token ids that the model has.
    """

    def __init__(self, config: Config, vocabulary: int) -> None:
        self._config = config
        self._vocabulary = vocabulary
        self._train, self._validation = open_data(config.data)

    @property
    def revision(self) -> str | None:
        """The commit of C4 on the hub, where it is known."""
        return self._train.revision if isinstance(self._train, Corpus) else None

    @property
    def own_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that prepared data were made with; None for text."""
        return self._train.tokenizer if isinstance(self._train, Shards) else None

    def marks(self) -> dict[str, Marks]:
        """Of prepared data the two splits, each with its fingerprint; of C4 nothing."""
        if isinstance(self._train, Shards) and isinstance(self._validation, Shards):
            splits = {"train": _prepared(self._train), "validation": _prepared(self._validation)}
            return {"data.prepared": splits}
        return {field: marks_of(name, find_files(name)[1]) for field, name in _named(self._config.data)}

    def fault(self) -> str | None:
        """That there is no document to train on, or none to evaluate with."""
        if all(map(_has_document, (self._train, self._validation))):
            return None
        return f"data: {self._config.data.prepared or self._config.data.source}: has no document"

    def loaders(self, ranks: Ranks, previous: Previous | None) -> TextLoaders:
        """With the run's tokenizer: kept, found, or trained, on rank 0, and the same files everywhere."""
        tokenizer = of_files(ranks.from_main(lambda: self._tokenizer(ranks, previous).files))
        check_vocabulary(tokenizer, self._vocabulary)
        loaders = TextLoaders(self._config, self._train, self._validation, tokenizer)
        own = None if previous is None or FIELD in previous.changed else previous.fingerprint
        if own not in (None, loaders.fingerprint):
            raise UserError(
                "tokenizer.model: the run's own, beside its checkpoints, is missing or not the one that it "
                "was begun with (SHA-256); restore it"
            )
        return loaders

    def _tokenizer(self, ranks: Ranks, previous: Previous | None) -> Tokenizer:
        """The tokenizer, on rank 0."""
        if isinstance(self._train, Shards):
            return self._train.tokenizer
        if previous is not None and FIELD not in previous.changed:
            kept = kept_in(previous.folder, previous.fingerprint)
            if kept is not None:
                return kept
        if self._config.tokenizer.model == TRAIN:
            ranks.say("training a tokenizer on the corpus")
        return find_tokenizer(self._config, self._train.documents(), self._vocabulary)


class TextLoaders(Loaders):
    """Text with its tokenizer.

    Args:
        config: the recipe.
        train: what is trained on.
        validation: what is evaluated with.
        tokenizer: of both.
    """

    def __init__(self, config: Config, train: Source, validation: Source, tokenizer: Tokenizer) -> None:
        self._config = config
        self._train = train
        self._validation = validation
        self._tokenizer = tokenizer

    @property
    def fingerprint(self) -> str:
        """That of the tokenizer."""
        return self._tokenizer.fingerprint

    @property
    def files(self) -> Mapping[str, bytes]:
        """The tokenizer's, which later starts read their text with."""
        return self._tokenizer.files

    def training(self, rank: int, world_size: int, states: Mapping[str, Any] | None) -> TrainingData:
        """A rank's sequences, enough for an update, or from a checkpoint's position on."""
        config = self._config
        data = TrainingData(self._train, self._tokenizer, config.data, config.train, rank, world_size)
        if states is None:
            data.check_size()
        else:
            data.load(states)
        return data

    def evaluation(self, ranks: Ranks) -> Iterable[Batch]:
        """The validation set, read and tokenized by one rank for all."""
        config = self._config
        drawn = ranks.from_main(
            lambda: validation_sequences(
                self._validation, self._tokenizer, config.data, config.train, config.eval.tokens
            )
        )
        return EvaluationData(drawn, self._tokenizer.pad, config.train, ranks.rank, ranks.world_size)

    def describe(self, update: Sequence[Any]) -> list[str]:
        """The first sequence of an update, as text."""
        first: Batch = update[0]
        length = int((first.labels[0] >= 0).sum())
        text = self._tokenizer.decode(first.input_ids[0, :length].tolist())
        return [
            f"first update on rank 0: {len(update)} micro-batches of {tuple(first.input_ids.shape)}",
            f"first sequence, {length} tokens: {text!r}",
        ]


def _prepared(split: Shards) -> FileMark:
    files = (file for shard in split.shards for file in shard.files.values())
    return FileMark(sum(file["bytes"] for file in files), split.fingerprint)


def _named(config: DataConfig) -> Iterable[tuple[str, str]]:
    """The fields that name local files, and the names."""
    if config.source == "c4":
        return []
    train, validation = demo_files() if config.source == "demo" else (config.source, config.validation)
    named = (("data.source", train), ("data.validation", validation))
    return [(field, name) for field, name in named if name is not None]


def _has_document(source: Source) -> bool:
    if isinstance(source, Shards):
        return source.documents > 0 and source.document(0).size > 0
    return next(source.documents(), None) is not None
