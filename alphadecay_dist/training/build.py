"""What a run is made of: tokenizer, data, model, optimizer, controller."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from alphadecay_dist.control.protocol import DecayController, controller_for
from alphadecay_dist.engines.training import TrainEngine
from alphadecay_dist.training.data.batches import EvaluationData, Source, TrainingData, validation_sequences
from alphadecay_dist.training.data.prepared import Shards
from alphadecay_dist.training.data.tokenizer import (
    TRAIN,
    Tokenizer,
    check_vocabulary,
    find_tokenizer,
    load_tokenizer,
)
from alphadecay_dist.training.optimizer import build_optimizer, pick_apply
from alphadecay_dist.training.options import Options
from alphadecay_dist.training.preflight import ResolvedRun
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.resume import RunStart
from alphadecay_dist.training.tasks.language import model as models
from alphadecay_dist.training.tasks.language.flops import Utilization, flops_per_token, peak_flops
from alphadecay_dist.training.tasks.language.pretrained import values_from

TOKENIZER = "tokenizer.model"


def tokenizer_of(checked: ResolvedRun, ranks: Ranks, source: Source, start: RunStart, new: bool) -> Tokenizer:
    """The run's tokenizer: kept, found, or trained, on rank 0, and the same bytes everywhere.

    Args:
        checked: the recipe, and the model whose vocabulary it is to fit.
        ranks: this rank among the others.
        source: the data.
        start: how the run starts.
        new: whether another tokenizer than the kept one was accepted.
    """

    def find() -> bytes:
        if isinstance(source, Shards):
            return source.proto
        if start.checkpoint is not None and not new:
            kept = start.checkpoint.folder.resolve().parents[1] / TOKENIZER
            if kept.is_file():
                return load_tokenizer(str(kept)).proto
        if checked.config.tokenizer.model == TRAIN:
            ranks.say("training a tokenizer on the corpus")
        return find_tokenizer(checked.config, source.documents(), checked.model_config.vocab_size).proto

    tokenizer = Tokenizer(ranks.from_main(find))
    check_vocabulary(tokenizer, checked.model_config.vocab_size)
    return tokenizer


def training_data(
    config: Config, source: Source, tokenizer: Tokenizer, ranks: Ranks, lanes: Mapping[str, Any] | None
) -> TrainingData:
    """This rank's data, from the saved position in each lane on; None starts at the first document."""
    data = TrainingData(source, tokenizer, config.data, config.train, ranks.rank, ranks.world_size)
    if lanes is None:
        data.check_size()
    else:
        data.load(lanes)
    return data


def evaluation_data(config: Config, source: Source, tokenizer: Tokenizer, ranks: Ranks) -> EvaluationData:
    """The validation set, read and tokenized by one rank for all."""
    drawn = ranks.from_main(
        lambda: validation_sequences(source, tokenizer, config.data, config.train, config.eval.tokens)
    )
    return EvaluationData(drawn, tokenizer.pad, config.train, ranks.rank, ranks.world_size)


def build(checked: ResolvedRun, options: Options, engine: TrainEngine, ranks: Ranks) -> DecayController:
    """Model with its initial weights, optimizer and engine; the policy's controller."""
    config = checked.config
    decay, picked = pick_apply(config, engine.premultiply_refusal())
    if picked:
        ranks.say(picked)
    model = engine.construct(lambda: models.build_model(checked.model_config, config.train))
    if options.init_from is None:
        values = models.random_values(checked.shapes, config.train.seed)
    else:
        values = values_from(options.init_from, checked.shapes, config.checkpoint.trust)
    dtype = getattr(torch, config.train.dtype)
    models.fill(model, values, dtype, engine.assign)
    fused = engine.device.type == "cuda"
    optimizer = build_optimizer(model, config.optimizer, decay, fused=fused)
    wrapped = engine.initialize(model, optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"optimizer: found Adam\b")  # the published recipes name it
        return controller_for(model, optimizer, decay, engine=wrapped, dtype=dtype)


def utilization_of(checked: ResolvedRun, engine: TrainEngine, ranks: Ranks) -> Utilization:
    """What an update costs, and what the ranks' devices could do."""
    train = checked.config.train
    tokens = train.global_batch * train.seq_len
    name = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else None
    peak = peak_flops(name, train.dtype)
    flops = tokens * flops_per_token(checked.shapes, checked.model_config, train.seq_len)
    return Utilization(flops, None if peak is None else peak * ranks.world_size)
