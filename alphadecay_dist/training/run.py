"""From options to a finished run: join the ranks, build, train, say where it all is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch.backends.cpu import get_cpu_capability

from alphadecay_dist.checkpoint import restore
from alphadecay_dist.checkpoint.writer import CHECKPOINTS, name_latest
from alphadecay_dist.condition.sample import CONDITION
from alphadecay_dist.condition.summary import summary
from alphadecay_dist.control.refresh import DECAY
from alphadecay_dist.engines.training import TrainEngine, training_for
from alphadecay_dist.errors import RunError, UserError, warn
from alphadecay_dist.training import resume
from alphadecay_dist.training.batch_size import micro_batch
from alphadecay_dist.training.build import build
from alphadecay_dist.training.config import as_dict, seconds_of, to_yaml
from alphadecay_dist.training.data.prefetch import Prefetched
from alphadecay_dist.training.dry_run import describe
from alphadecay_dist.training.inputs import INPUTS, Inputs
from alphadecay_dist.training.kept import keep, settled
from alphadecay_dist.training.loop import Trainer
from alphadecay_dist.training.options import Options, require_same_options
from alphadecay_dist.training.outputs.run_files import EVAL, METRICS, RunFiles, read_lines
from alphadecay_dist.training.outputs.run_log import RunLog
from alphadecay_dist.training.outputs.trackers import Trackers, start_trackers
from alphadecay_dist.training.preflight import ResolvedRun, resolve
from alphadecay_dist.training.process.exit_codes import PREEMPTED, Preempted, code_of, describe_error
from alphadecay_dist.training.process.lock import FolderLock
from alphadecay_dist.training.process.preemption import StopRequests, noop
from alphadecay_dist.training.process.ranks import Ranks


def run_recipe(options: Options, requests: StopRequests) -> None:
    """Run a recipe.

    Args:
        options: the command line.
        requests: of this rank, to stop.

    Raises:
        UserError: a mistake in options, recipe, config files or data, before any training.
        RunError: the run cannot go on.
        Preempted: it was asked to stop.
    """
    checked = resolve(options)
    deadline = checked.config.checkpoint.deadline
    if deadline is not None:
        requests.set_deadline(seconds_of(deadline, "checkpoint.deadline"), deadline)
    engine = training_for(checked.config.engine.name, checked.engine_config)
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
    checked: ResolvedRun,
    engine: TrainEngine,
    ranks: Ranks,
    lock: FolderLock,
    requests: StopRequests,
) -> None:
    """The run, once all ranks are in one process group."""
    engine.check_config()
    require_same_options(options, checked, ranks)
    _say_sizes(checked, ranks)
    _say_slow_dtype(checked.config.train.dtype, engine, ranks)
    if not options.dry_run:
        ranks.from_main(lock.before_reading)
    start = resume.choose_start(checked.folder, checked.config, options.resume, options.overwrite, ranks)
    for reason in start.skipped:
        ranks.say(f"skipped a checkpoint that is not whole: {reason}")
    if start.finished is not None:
        ranks.say(
            f"{checked.folder} is finished ({start.finished['step']} updates): nothing to do. "
            "For a new run give another --output_dir, or --resume none --overwrite",
        )
        return
    checked = settled(checked, options, start, ranks)
    _raise_if_stopped(ranks, requests)
    with ranks.raise_on_all_ranks():
        opened = checked.task.open(checked.config, checked.model)
    kept = keep(checked, options, opened, start, ranks)
    if start.checkpoint is not None:
        shapes = {name: tuple(parameter.shape) for name, parameter in checked.shapes.named_parameters()}
        restore.require_model(start.checkpoint, shapes)
    loaders = opened.loaders(ranks, kept.previous)
    _raise_if_stopped(ranks, requests)
    position = None if start.saved is None or kept.restart_data else start.saved.state.lanes
    with ranks.raise_on_all_ranks():
        data = loaders.training(ranks.rank, ranks.world_size, position)
    if options.dry_run:
        ranks.say(describe(checked, engine, ranks, loaders, data))
        return
    evaluation = loaders.evaluation(ranks)
    built = build(checked, options, engine, ranks)
    _raise_if_stopped(ranks, requests)
    inputs = kept.with_loaders(loaders)
    ranks.from_main(lambda: _written(checked, start, loaders.files, inputs, lock))
    log = _log(checked, start, ranks, requests)
    ahead = Prefetched(data, pin=engine.device.type == "cuda")
    trainer = Trainer(checked, inputs, ranks, engine, built, ahead, evaluation, log, requests)
    _train(checked, trainer, start, ranks, log, requests)


def _say_sizes(checked: ResolvedRun, ranks: Ranks) -> None:
    """Say where a micro-batch is smaller than the recipe's."""
    train = checked.config.train
    size = micro_batch(train, ranks.world_size)
    if size < train.micro_batch:
        ranks.say(
            f"micro-batches of {size} {checked.task.samples}: train.micro_batch is {train.micro_batch}, and "
            f"{size} is the largest divisor below it of a rank's {train.global_batch // ranks.world_size} an "
            "update"
        )


def _say_slow_dtype(dtype: str, engine: TrainEngine, ranks: Ranks) -> None:
    """Say that bf16 is slow, on a CPU for which torch has no fast product of it (3.3 M weights: 13 times)."""
    if dtype == "bfloat16" and engine.device.type == "cpu" and get_cpu_capability() == "AVX2":
        ranks.say(
            "train.dtype: bfloat16 is many times slower than float32 on this CPU, which has no AVX-512; "
            "leave it auto, which is float32 here"
        )


def _raise_if_stopped(ranks: Ranks, requests: StopRequests) -> None:
    """Go on with the resume, or end it on all ranks: there is nothing to save yet."""
    reason = requests.agree(ranks)
    if reason:
        raise Preempted(reason)


def _written(
    checked: ResolvedRun,
    start: resume.RunStart,
    own: Mapping[str, bytes],
    inputs: Inputs,
    lock: FolderLock,
) -> None:
    """Write the run's beginning; a file system that refuses it is the user's to fix."""
    try:
        _prepare_folder(checked, start, own, inputs, lock)
    except OSError as error:
        raise UserError(
            f"{checked.folder}: cannot be written: {error.strerror}; fix that and start again, or choose "
            "another --output_dir"
        ) from None


def _prepare_folder(
    checked: ResolvedRun,
    start: resume.RunStart,
    own: Mapping[str, bytes],
    inputs: Inputs,
    lock: FolderLock,
) -> None:
    """Make the output directory fit the run's beginning, and this run's own; with the task's files in it."""
    lock.before_writing()
    if start.clear:
        resume.clear(checked.folder, checked.task.files)
    files = RunFiles(checked.folder)
    files.text("config.yaml", to_yaml(checked.config))
    files.text(INPUTS, json.dumps(dataclasses.asdict(inputs), indent=1))
    for name, content in own.items():
        path = checked.folder / name
        path.parent.mkdir(exist_ok=True)
        if not path.is_file() or path.read_bytes() != content:  # on a full disk nothing is lost
            path.write_bytes(content)
    files.keep_until(start.step, start.evaluated)
    if start.checkpoint is not None and start.checkpoint.folder.parent == checked.folder / CHECKPOINTS:
        name_latest(start.checkpoint.folder)  # of several, the one that the run goes on from
    files.event("resumed" if start.saved else "started", start.step)
    files.status("running", start.step)


def _log(checked: ResolvedRun, start: resume.RunStart, ranks: Ranks, requests: StopRequests) -> RunLog:
    """What rank 0 writes of the run. Collective: where wandb does not start, all ranks hear of it."""
    trackers: Trackers | None = None
    with ranks.raise_on_all_ranks():
        if ranks.is_main:
            config = checked.config
            trackers = start_trackers(config.logging, checked.folder, as_dict(config), start.step)
    files = RunFiles(checked.folder) if ranks.is_main else None
    return RunLog(files, trackers, requests, checked.config.logging.spectra)


def _train(
    checked: ResolvedRun,
    trainer: Trainer,
    start: resume.RunStart,
    ranks: Ranks,
    log: RunLog,
    requests: StopRequests,
) -> None:
    """Train, and on rank 0 keep files, trackers and status."""
    with _watched(trainer, log, requests):
        if start.saved is not None:
            trainer.resume(start.saved)
            ranks.say(f"resumed from {start.saved.checkpoint.folder} after update {start.step}")
        finished = _trained(trainer)
        stop = None if finished else f"train.stop_after={checked.config.train.stop_after}"
        state = "finished" if finished else "preempted"
        ranks.from_main(lambda: log.ended(state, trainer.progress.step, 0, stop))
    ranks.say(_closing_line(checked, trainer, finished))
    if finished:
        ranks.from_main(lambda: _say_condition(checked, ranks))


def _trained(trainer: Trainer) -> bool:
    """Train; what fails now is no mistake in what was given, whatever raises it."""
    try:
        return trainer.run()
    except UserError as error:
        raise RunError(str(error)) from None


@contextmanager
def _watched(trainer: Trainer, log: RunLog, requests: StopRequests) -> Iterator[None]:
    """End the trackers, and write a stop or a failure into status.json, however the run ends."""
    requests.on_forced_exit = lambda reason: log.ended("preempted", trainer.progress.step, PREEMPTED, reason)
    code = 0
    try:
        yield
    except BaseException as error:
        code = code_of(error)
        try:
            state = "preempted" if code == PREEMPTED else "failed"
            log.ended(state, trainer.progress.step, code, describe_error(error))
        except RunError as unwritten:
            warn(str(unwritten))
        raise
    finally:
        requests.on_forced_exit = noop  # what status.json says now stands
        log.close(code)


def _closing_line(checked: ResolvedRun, trainer: Trainer, finished: bool) -> str:
    """Where everything is."""
    shown = " -> ".join(f"{number:.2f}" for number in trainer.shown)
    change = f", validation {checked.task.shown} {shown}" if shown else ""
    state = "finished" if finished else "stopped, to be continued by the same command"
    records = [name for name in (METRICS, EVAL, DECAY, CONDITION) if (checked.folder / name).is_file()]
    return (
        f"{state}: {trainer.progress.step} updates{change}; {', '.join(records)}, config.yaml and "
        f"checkpoints/ are in {checked.folder}"
    )


def _say_condition(checked: ResolvedRun, ranks: Ranks) -> None:
    """What the samples of the spectral condition say, where there are some."""
    path = checked.folder / CONDITION
    lines = read_lines(path) if path.is_file() else []
    if lines:
        ranks.say(f"{summary(lines)}\nmore, and a suggestion for Muon: alphadecay condition {checked.folder}")
