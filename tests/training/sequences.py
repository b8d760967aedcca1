"""The sequences of a small corpus, update by update and rank by rank."""

from __future__ import annotations

import json

from alphadecay_dist.training.data.batches import IGNORE, TrainingData
from alphadecay_dist.training.data.corpus import open_corpora
from alphadecay_dist.training.recipe import DataConfig, TrainConfig
from tests.training.corpora import number_tokenizer

TRAIN = TrainConfig(global_batch=12, micro_batch=4, seq_len=8, seed=3)
SIZES = (37, 11, 52)  # documents of each file
WORLDS = (1, 2, 3, 4, 6, 12)


def data_of(folder, rank=0, world_size=1, train=TRAIN, **options):
    config = DataConfig(**{"source": str(folder), "holdout": 1000, "shuffle": 5, **options})
    corpus, _ = open_corpora(config)
    return TrainingData(corpus, number_tokenizer(), config, train, rank, world_size)


def sequences_of(batches):
    """The token ids of every sequence, padding cut off by the labels."""
    return [
        ids[labels != IGNORE].tolist()
        for batch in batches
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True)
    ]


def updates_of(ranks, count):
    """The global sequences of the next updates: the ranks' micro-batches one after the other."""
    return [[ids for data in ranks for ids in sequences_of(data.next_update())] for _ in range(count)]


def merged(ranks):
    """The states of all ranks as a checkpoint keeps them."""
    states = {}
    for data in ranks:
        states.update(json.loads(json.dumps(data.state())))
    return states
