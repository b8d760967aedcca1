"""Places in a run of the trainer where a rank dies by SIGKILL: which there are, and how it comes to one."""

from __future__ import annotations

import functools
import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphadecay_dist.checkpoint.shards import Shard
from alphadecay_dist.engines.native.training import TorchTraining
from alphadecay_dist.engines.zero.training import ZeroTraining
from alphadecay_dist.training.outputs.run_files import METRICS, RunFiles

MARK, UPDATES = "struck", "updates"
ENGINE = "the engine's class"

Wrapper = Callable[[Callable[..., Any], "Strike"], Callable[..., Any]]


@dataclass(frozen=True)
class Fault:
    """What is to kill a run.

    Attributes:
        point: name of a place in :data:`POINTS`.
        rank: that comes to it.
        everyone: all ranks die, not that one alone.
        occurrence: it dies when it is there for the n-th time.
    """

    point: str
    rank: int
    everyone: bool
    occurrence: int

    def __str__(self) -> str:
        who = "all ranks" if self.everyone else f"rank {self.rank}"
        return f"{self.point} on rank {self.rank}, time {self.occurrence}: {who}"


class Strike:
    """A fault in the process of a rank; it strikes once.

    Args:
        fault: which.
        folder: of this start of the run, where every rank has left its process id.
        armed: occurrences count from the beginning, not from this rank's first update.
    """

    def __init__(self, fault: Fault, folder: Path, armed: bool) -> None:
        self.armed = armed
        self._fault = fault
        self._folder = folder
        self._left = fault.occurrence
        self._lock = threading.Lock()  # spectra are computed by several threads

    def due(self) -> bool:
        """Count an occurrence; whether it is the one to die at."""
        with self._lock:
            self._left -= self.armed
            return self.armed and self._left == 0

    def now(self) -> None:
        """Say that the place was reached, and die, alone or with all others."""
        (self._folder / MARK).write_text(str(self._fault))
        if self._fault.everyone:
            for process in processes(self._folder) - {os.getpid()}:
                os.kill(process, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def processes(folder: Path) -> set[int]:
    """Process ids of the ranks of a start."""
    return {int(path.read_text()) for path in folder.glob("process.*")}


@dataclass(frozen=True)
class Point:
    """A place in the code.

    Attributes:
        kind: of what it is in the midst of.
        owner: module, and class if there is one, that is looked up at the call: ``package.module:Class``,
            or :data:`ENGINE`.
        attribute: the function.
        wrapper: puts the strike before it, after it or into it.
        most: largest number of the occurrence to die at.
        main: rank 0 alone comes there.
        moving: only where weights travel between ranks.
        joining: it counts from the start of a run that goes on, and is not reached in one that begins.
    """

    kind: str
    owner: str
    attribute: str
    wrapper: Wrapper
    most: int = 1
    main: bool = False
    moving: bool = False
    joining: bool = False

    def put(self, strike: Strike, engine: type) -> None:
        """Let this process, in which this class is the engine, die there."""
        module, _, cls = self.owner.partition(":")
        owner = engine if self.owner == ENGINE else importlib.import_module(module)
        owner = getattr(owner, cls) if cls else owner
        original = getattr(owner, self.attribute)
        setattr(owner, self.attribute, functools.wraps(original)(self.wrapper(original, strike)))


def before(original: Callable[..., Any], strike: Strike) -> Callable[..., Any]:
    """Die before a call."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if strike.due():
            strike.now()
        return original(*args, **kwargs)

    return wrapped


def after(original: Callable[..., Any], strike: Strike) -> Callable[..., Any]:
    """Die when a call has returned."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if strike.due():
            strike.now()
        return result

    return wrapped


def replacing(wrapper: Wrapper, suffix: str) -> Wrapper:
    """Around os.replace, where the new name ends so."""

    def outer(original: Callable[..., Any], strike: Strike) -> Callable[..., Any]:
        struck = wrapper(original, strike)

        def wrapped(source: Any, target: Any) -> None:
            (struck if str(target).endswith(suffix) else original)(source, target)

        return wrapped

    return outer


def half_a_file(original: Callable[..., Any], strike: Strike) -> Callable[..., Any]:
    """Die when half of a shard is written."""

    def wrapped(tensors: Any, path: Path) -> None:
        original(tensors, path)
        if strike.due():
            os.truncate(path, path.stat().st_size // 2)
            strike.now()

    return wrapped


def half_a_line(original: Callable[..., Any], strike: Strike) -> Callable[..., Any]:
    """Die when half of a line is written."""

    def wrapped(self: RunFiles, name: str, record: Any) -> None:
        original(self, name, record)
        if strike.due():
            path = self.folder / name
            last = len(path.read_bytes().splitlines(keepends=True)[-1])
            os.truncate(path, path.stat().st_size - (last + 1) // 2)
            strike.now()

    return wrapped


def shards_known(original: Callable[..., Any], strike: Strike) -> Callable[..., Any]:
    """Die when a rank knows that all shards are written, and rank 0 is about to write the manifest."""

    def wrapped(self: Any, value: Any) -> Any:
        everyone = original(self, value)
        if isinstance(value, Shard) and strike.due():
            strike.now()
        return everyone

    return wrapped


def handed_out(original: Callable[..., Any], strike: Strike) -> Callable[..., Any]:
    """Die at an item of what is handed out one by one."""

    def wrapped(*args: Any) -> Iterator[Any]:
        for item in original(*args):
            if strike.due():
                strike.now()
            yield item

    return wrapped


def taken_in(original: Callable[..., Any], strike: Strike) -> Callable[..., Any]:
    """Die at a micro-batch of an evaluation."""

    def counted(losses: Iterator[Any]) -> Iterator[Any]:
        for loss in losses:
            if strike.due():
                strike.now()
            yield loss

    return lambda self, losses: original(self, counted(losses))


def removing(half: bool) -> Wrapper:
    """Around the removal of an old checkpoint, whose manifest is already gone."""

    def outer(original: Callable[..., Any], strike: Strike) -> Callable[..., Any]:
        def wrapped(path: Path, *args: Any, **kwargs: Any) -> None:
            if path.is_dir() and path.name.startswith("step-") and strike.due():
                for file in sorted(path.rglob("*.safetensors"))[:half]:
                    file.unlink()
                strike.now()
            original(path, *args, **kwargs)

        return wrapped

    return outer


_LOADING = "alphadecay_dist.checkpoint.restore"
_SAVING = "alphadecay_dist.checkpoint.writer"
_SHARDS = "alphadecay_dist.checkpoint.shards"
_FILES = "alphadecay_dist.training.outputs.run_files:RunFiles"
_EXCHANGE = "alphadecay_dist.sharding.exchange:Exchange"
_GROUPS = "alphadecay_dist.control.writers:GroupWriter"
POINTS = {
    "before a shard is written": Point("save", _SAVING, "write_shard", before),
    "when half of a shard is written": Point("save", _SHARDS, "save_file", half_a_file),
    "when all shards are written": Point(
        "save", "alphadecay_dist.training.process.ranks:Ranks", "gather", shards_known
    ),
    "before the manifest is written": Point("save", _SAVING, "joined", before, main=True),
    "before the manifest's rename": Point(
        "rename", "os", "replace", replacing(before, "manifest.json"), main=True
    ),
    "after the manifest's rename": Point(
        "rename", "os", "replace", replacing(after, "manifest.json"), main=True
    ),
    "before the rename of latest": Point("rename", "os", "replace", replacing(before, "latest"), main=True),
    "after the rename of latest": Point("rename", "os", "replace", replacing(after, "latest"), main=True),
    "before a checkpoint is removed": Point("prune", "shutil", "rmtree", removing(half=False), main=True),
    "when half of a checkpoint is removed": Point(
        "prune", "shutil", "rmtree", removing(half=True), main=True
    ),
    "in a round of the exchange": Point(
        "gather", "torch.distributed", "all_to_all_single", after, most=3, moving=True
    ),
    "at a gathered matrix": Point("gather", _EXCHANGE, "matrices", handed_out, most=4),
    "before spectra are computed": Point(
        "refresh", "alphadecay_dist.spectral.batch", "analyze_stack", before
    ),
    "before spectra are shared": Point("refresh", _EXCHANGE, "share", before),
    "before decays are written": Point("refresh", _GROUPS, "write", before),
    "after decays are written": Point("refresh", _GROUPS, "write", after),
    "after the gradients": Point("step", ENGINE, "gradients", after, most=9),
    "before an optimizer's step": Point("step", "torch.optim:AdamW", "step", before, most=9),
    "after an optimizer's step": Point("step", "torch.optim:AdamW", "step", after, most=9),
    "after an update": Point("step", ENGINE, "step", after, most=9),
    "at a batch of an evaluation": Point("evaluation", ENGINE, "evaluate", taken_in, most=8),
    "in a line of a log": Point("log", _FILES, "append", half_a_line, most=20, main=True),
    "before a log's rename": Point(
        "resume", "os", "replace", replacing(before, ".jsonl"), most=3, main=True, joining=True
    ),
    "after a log's rename": Point(
        "resume", "os", "replace", replacing(after, ".jsonl"), most=3, main=True, joining=True
    ),
    "before a checkpoint is loaded": Point("resume", _LOADING, "load", before, joining=True),
    "after a checkpoint is loaded": Point("resume", _LOADING, "load", after, joining=True),
}


def train_until(
    main: Callable[[list[str]], int], argv: list[str], fault: Fault | None, folder: Path, goes_on: bool
) -> int:
    """A rank of a run, until it is done or struck.

    Args:
        main: the trainer's.
        argv: its options.
        fault: what strikes; None leaves the run alone.
        folder: of this start of the run: the ranks' process ids, the updates made, whether it was struck.
        goes_on: the run has made an update before this start.
    """
    rank = os.environ["RANK"]
    (folder / f"process.{rank}").write_text(str(os.getpid()))
    engine = ZeroTraining if "--deepspeed" in argv else TorchTraining
    if rank == "0":
        _keep_account(folder / UPDATES)
    if fault and rank == str(fault.rank):
        point = POINTS[fault.point]
        strike = Strike(fault, folder, armed=point.joining and goes_on)
        if not point.joining:
            _arm_after_first_update(engine, strike)
        point.put(strike, engine)
    return main(argv)


def _keep_account(path: Path) -> None:
    """Write down every update that this start of the run has made."""
    original = RunFiles.append

    def append(self: RunFiles, name: str, record: Any) -> None:
        if name == METRICS:
            with path.open("a") as file:
                file.write(f"{record['step']}\n")
        original(self, name, record)

    RunFiles.append = append  # type: ignore[method-assign]


def _arm_after_first_update(engine: type, strike: Strike) -> None:
    original = engine.step  # type: ignore[attr-defined]

    def step(self: Any, before_step: Callable[[], None]) -> bool:
        applied = original(self, before_step)
        strike.armed = True
        return applied

    engine.step = step  # type: ignore[attr-defined]
