"""From options to a finished run: join the ranks, build, train, say where it all is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import yaml

from alphadecay_dist.checkpoint.writer import name_latest
from alphadecay_dist.controller import AlphaDecay, tridiagonal_weight
from alphadecay_dist.engines.training import Training, training_for
from alphadecay_dist.errors import RunError, UserError
from alphadecay_dist.sharding.agreement import collective_device
from alphadecay_dist.sharding.inventory import Weight, tuned_weights
from alphadecay_dist.sharding.ownership import assign_owners
from alphadecay_dist.sharding.work import analysed, costs_of
from alphadecay_dist.training import model as models
from alphadecay_dist.training import start
from alphadecay_dist.training.check import Checked, Options, check
from alphadecay_dist.training.config import seconds_of, to_yaml
from alphadecay_dist.training.data import (
    EvaluationData,
    Source,
    TrainingData,
    open_data,
    validation_sequences,
)
from alphadecay_dist.training.exits import PREEMPTED, Preempted
from alphadecay_dist.training.lock import FolderLock
from alphadecay_dist.training.loop import Trainer
from alphadecay_dist.training.metrics import RunFiles, Tracker
from alphadecay_dist.training.optimizer import build_optimizer, pick_apply
from alphadecay_dist.training.preemption import StopRequests, silence
from alphadecay_dist.training.prefetch import Prefetched
from alphadecay_dist.training.prepared import Shards
from alphadecay_dist.training.ranks import Ranks
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.throughput import Utilization, flops_per_token, peak_flops
from alphadecay_dist.training.tokenizer import TRAIN, Tokenizer, check_vocabulary, find_tokenizer

TOKENIZER = "tokenizer.model"


def run(options: Options, requests: StopRequests) -> None:
    """Run a recipe.

    Args:
        options: the command line.
        requests: of this rank, to stop.

    Raises:
        UserError: a mistake in options, recipe, config files or data, before any training.
        RunError: the run cannot go on.
        Preempted: it was asked to stop.
    """
    checked = check(options)
    deadline = checked.config.checkpoint.deadline
    if deadline is not None:
        requests.set_deadline(seconds_of(deadline, "checkpoint.deadline"), deadline)
    engine = training_for(checked.engine_config)
    engine.start()
    requests.joined()
    lock = FolderLock(checked.folder)
    try:
        _run_joined(options, checked, engine, Ranks(engine.device), lock, requests)
    except (UserError, RunError, Preempted):
        engine.close()
        raise
    finally:
        lock.release()
    engine.close()


def _run_joined(
    options: Options,
    checked: Checked,
    engine: Training,
    ranks: Ranks,
    lock: FolderLock,
    requests: StopRequests,
) -> None:
    """The run, once all ranks are in one process group."""
    engine.check_config()
    if not options.dry_run:
        ranks.from_main(lock.before_reading)
    begin = start.begin(checked.folder, checked.config, options.resume, options.overwrite, ranks)
    for reason in begin.skipped:
        _say(ranks, f"skipped a checkpoint that is not whole: {reason}")
    if begin.finished is not None:
        _say(
            ranks,
            f"{checked.folder} is finished ({begin.finished['step']} updates): nothing to do. "
            "For a new run give another --output_dir, or --resume none --overwrite",
        )
        return
    _unless_asked(ranks, requests)
    source, validation = ranks.together(lambda: open_data(checked.config.data))
    tokenizer = _tokenizer(checked, ranks, source, begin)
    _unless_asked(ranks, requests)
    data = ranks.together(lambda: _training_data(checked.config, source, tokenizer, ranks, begin))
    if options.dry_run:
        _say(ranks, _describe(checked, engine, ranks, data, tokenizer))
        return
    evaluation = _evaluation_data(checked.config, validation, tokenizer, ranks)
    decay = _build(checked, options, engine, ranks)
    _unless_asked(ranks, requests)
    ranks.from_main(lambda: _written(checked, begin, tokenizer, lock))
    _train(checked, engine, ranks, begin, decay, data, evaluation, requests)


def _unless_asked(ranks: Ranks, requests: StopRequests) -> None:
    """Go on with the start, or end it on all ranks: there is nothing to save yet."""
    reason = requests.agree(ranks)
    if reason:
        raise Preempted(reason)


def _tokenizer(checked: Checked, ranks: Ranks, source: Source, begin: start.Start) -> Tokenizer:
    """The run's tokenizer: kept, found, or trained, on rank 0, and the same bytes everywhere."""

    def find() -> bytes:
        if isinstance(source, Shards):
            return source.proto
        if begin.checkpoint is not None:
            kept = begin.checkpoint.folder.parents[1] / TOKENIZER
            if kept.is_file():
                return kept.read_bytes()
        if checked.config.tokenizer.model == TRAIN:
            _say(ranks, "training a tokenizer on the corpus")
        model, vocabulary = checked.config.tokenizer.model, checked.model_config.vocab_size
        return find_tokenizer(model, source.documents(), vocabulary).proto

    tokenizer = Tokenizer(ranks.from_main(find))
    check_vocabulary(tokenizer, checked.model_config.vocab_size)
    return tokenizer


def _training_data(
    config: Config, source: Source, tokenizer: Tokenizer, ranks: Ranks, begin: start.Start
) -> TrainingData:
    """This rank's data, enough for an update, or those that the checkpoint goes on with."""
    data = TrainingData(source, tokenizer, config.data, config.train, ranks.rank, ranks.world_size)
    if begin.checkpoint is None:
        data.check_size()
    else:
        data.load(begin.checkpoint.state()["lanes"])
    return data


def _evaluation_data(config: Config, source: Source, tokenizer: Tokenizer, ranks: Ranks) -> EvaluationData:
    """The validation set, read and tokenized by one rank for all."""
    drawn = ranks.from_main(
        lambda: validation_sequences(source, tokenizer, config.data, config.train, config.eval.tokens)
    )
    return EvaluationData(drawn, tokenizer.pad, config.train, ranks.rank, ranks.world_size)


def _build(checked: Checked, options: Options, engine: Training, ranks: Ranks) -> AlphaDecay | None:
    """Model with its initial weights, optimizer and engine; the controller, if the policy has one."""
    config = checked.config
    decay, picked = pick_apply(config, engine.premultiply_refusal())
    if picked:
        _say(ranks, picked)
    model = engine.construct(lambda: models.build_model(checked.model_config, config.train))
    if options.init_from is None:
        values = models.random_values(checked.shapes, config.train.seed)
    else:
        values = models.values_from(options.init_from, checked.shapes)
    dtype = getattr(torch, config.train.dtype)
    models.fill(model, values, dtype, engine.assign)
    fused = engine.device.type == "cuda"
    optimizer = build_optimizer(model, config.optimizer, decay, fused=fused)
    wrapped = engine.initialize(model, optimizer)
    if decay.policy == "uniform":
        return None
    return AlphaDecay(
        model,
        optimizer,
        engine=wrapped,
        dtype=dtype,
        memory_budget=decay.memory_budget,
        device=decay.device,
        apply=decay.apply,
        **vars(decay.settings()),
    )


def _written(checked: Checked, begin: start.Start, tokenizer: Tokenizer, lock: FolderLock) -> None:
    """Write the run's beginning; a file system that refuses it is the user's to mend."""
    try:
        _prepare_folder(checked, begin, tokenizer, lock)
    except OSError as error:
        raise UserError(
            f"{checked.folder}: cannot be written: {error.strerror}; mend that and start again, or choose "
            "another --output_dir"
        ) from None


def _prepare_folder(checked: Checked, begin: start.Start, tokenizer: Tokenizer, lock: FolderLock) -> None:
    """Make the output directory fit the run's beginning, and this run's own."""
    lock.before_writing()
    if begin.clear:
        start.clear(checked.folder)
    files = RunFiles(checked.folder)
    files.text("config.yaml", to_yaml(checked.config))
    kept = checked.folder / TOKENIZER
    if not kept.is_file() or kept.read_bytes() != tokenizer.proto:  # on a full disk nothing is lost
        kept.write_bytes(tokenizer.proto)
    files.keep_until(begin.step, begin.evaluated)
    if begin.checkpoint is not None and begin.checkpoint.folder.parent == checked.folder / start.CHECKPOINTS:
        name_latest(begin.checkpoint.folder)  # of several, the one that the run goes on from
    files.status("running", begin.step)


def _train(
    checked: Checked,
    engine: Training,
    ranks: Ranks,
    begin: start.Start,
    decay: AlphaDecay | None,
    data: TrainingData,
    evaluation: EvaluationData,
    requests: StopRequests,
) -> None:
    """Train, and on rank 0 keep files, wandb and status."""
    config, folder = checked.config, checked.folder
    files = RunFiles(folder) if ranks.is_main else None
    trackers: list[Tracker] = []
    ranks.from_main(lambda: trackers.append(_tracker(checked, begin)))
    tracker = trackers[0] if trackers else None
    ahead = Prefetched(data, pin=engine.device.type == "cuda")
    utilization = _utilization(checked, engine, ranks)
    trainer = Trainer(
        config, folder, ranks, engine, decay, ahead, evaluation, files, tracker, utilization, requests
    )
    with _watched(trainer, files, tracker, requests):
        if begin.checkpoint is not None:
            trainer.resume(begin.checkpoint)
            _say(ranks, f"resumed from {begin.checkpoint.folder} after update {begin.step}")
        finished = trainer.run()
        if files and finished:
            files.status("finished", trainer.progress.step, 0)
        elif files:
            stop = f"train.stop_after={config.train.stop_after}"
            files.status("preempted", trainer.progress.step, 0, stop)
    if files:
        print(_closing_line(checked, trainer, finished), flush=True)


def _utilization(checked: Checked, engine: Training, ranks: Ranks) -> Utilization:
    train = checked.config.train
    tokens = train.global_batch * train.seq_len
    name = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else None
    peak = peak_flops(name, train.dtype)
    flops = tokens * flops_per_token(checked.shapes, checked.model_config, train.seq_len)
    return Utilization(flops, None if peak is None else peak * ranks.world_size)


def _tracker(checked: Checked, begin: start.Start) -> Tracker:
    config = dataclasses.asdict(checked.config)
    return Tracker(checked.config.logging.wandb, checked.folder, config, resumed=begin.step > 0)


@contextmanager
def _watched(
    trainer: Trainer, files: RunFiles | None, tracker: Tracker | None, requests: StopRequests
) -> Iterator[None]:
    """End wandb, and write a stop or a failure into status.json, however the run ends."""

    def stopped(reason: str) -> None:
        if files:
            files.status("preempted", trainer.progress.step, PREEMPTED, reason)

    requests.last_words = stopped
    code = 1
    try:
        yield
        code = 0
    except Preempted as stop:
        code = PREEMPTED
        stopped(str(stop))
        raise
    except RunError as error:
        if files:
            files.status("failed", trainer.progress.step, 1, str(error))
        raise
    except BaseException as error:
        if files:
            files.status("failed", trainer.progress.step, 1, f"{type(error).__name__}: {error}")
        raise
    finally:
        requests.last_words = silence  # what status.json says now stands
        if tracker:
            tracker.close(code)


def _closing_line(checked: Checked, trainer: Trainer, finished: bool) -> str:
    """Where everything is."""
    perplexities = [f"{perplexity:.2f}" for perplexity in trainer.perplexities]
    change = f", validation perplexity {' -> '.join(perplexities)}" if perplexities else ""
    state = "finished" if finished else "stopped, to be continued by the same command"
    return (
        f"{state}: {trainer.progress.step} updates{change}; metrics.jsonl, eval.jsonl, decay.jsonl, "
        f"config.yaml and checkpoints/ are in {checked.folder}"
    )


def _describe(
    checked: Checked, engine: Training, ranks: Ranks, data: TrainingData, tokenizer: Tokenizer
) -> str:
    """What --dry_run prints: config, sizes, plan, first batch."""
    group = dist.group.WORLD
    owned = owners(checked, ranks.world_size, tridiagonal_weight(collective_device(group), group))
    batches = data.next_update()
    lines = [f"  {w.name} {w.shape[0]} x {w.shape[1]}: rank {rank}" for w, rank in owned]
    first = batches[0]
    length = int((first.labels[0] >= 0).sum())
    return "\n".join(
        [
            to_yaml(checked.config),
            yaml.safe_dump({engine.layout: engine.options}, sort_keys=False),
            f"weights: {models.parameter_count(checked.shapes):,}",
            f"tuned matrices and their owners on {ranks.world_size} ranks: {len(owned)}",
            *lines,
            f"first update on rank 0: {len(batches)} micro-batches of {tuple(first.input_ids.shape)}",
            f"first sequence, {length} tokens: {tokenizer.decode(first.input_ids[0, :length].tolist())!r}",
        ]
    )


def owners(checked: Checked, world_size: int, tridiagonal: float) -> list[tuple[Weight, int]]:
    """The weights that the run will analyse, and the rank that will."""
    settings = checked.config.decay.settings()
    weights = analysed(tuned_weights(checked.shapes), checked.shapes, settings)
    found = assign_owners(costs_of(weights, tridiagonal, settings.farms), world_size)
    return [(weight, found[weight.name]) for weight in weights]


def _say(ranks: Ranks, text: str) -> None:
    if ranks.is_main:
        print(text, flush=True)
