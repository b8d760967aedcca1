"""The training loop: updates, evaluations, checkpoints, and what is logged of them."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from alphadecay_dist.checkpoint import restore
from alphadecay_dist.checkpoint.reader import newest
from alphadecay_dist.checkpoint.writer import CHECKPOINTS
from alphadecay_dist.engines.training import Loss, TrainEngine
from alphadecay_dist.errors import RunError, UserError
from alphadecay_dist.notices import LOGGER
from alphadecay_dist.training.bad_updates import ROLLBACK, BadUpdates
from alphadecay_dist.training.before_step import BeforeStep
from alphadecay_dist.training.build import Built
from alphadecay_dist.training.config import as_dict
from alphadecay_dist.training.data.prefetch import Prefetched
from alphadecay_dist.training.inputs import Inputs
from alphadecay_dist.training.optimizer import learning_rate
from alphadecay_dist.training.outputs.run_files import EVAL, METRICS, SEQUENCES
from alphadecay_dist.training.outputs.run_log import RunLog
from alphadecay_dist.training.preflight import ResolvedRun
from alphadecay_dist.training.process.exit_codes import Preempted
from alphadecay_dist.training.process.preemption import StopRequests
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.saver import Saver
from alphadecay_dist.training.state import SavedRun, saved_run
from alphadecay_dist.training.tasks.data import Batch

STOP_POLL_EVERY = 8  # micro-batches of an evaluation between questions whether to stop


@dataclass
class Progress:
    """How far the run is: updates finished and targets (of language, tokens) trained on."""

    step: int = 0
    targets: int = 0


@dataclass(frozen=True)
class _Agreed:
    """What all ranks know of an update once its gradients are there.

    Attributes:
        loss: the sum over all ranks' batches.
        targets: their number, 1 or more.
        stopping: whether a rank wants to stop, or cannot go on.
        saved: whether a checkpoint is under way, and every rank's part of it done.
    """

    loss: float
    targets: float
    stopping: bool
    saved: bool


class Trainer:
    """Runs one recipe to its end.

    Args:
        checked: recipe, task, model and output directory.
        inputs: what the run is made of, to be kept in checkpoints.
        ranks: this rank among the others.
        engine: the engine, holding model and optimizer.
        built: controller and telemetry, and what the task keeps beside the weights.
        data: this rank's training data.
        evaluation: this rank's validation data.
        log: what is written of the run.
        requests: of this rank, to stop.

    Attributes:
        progress: how far it is.
        shown: the number that people are shown of each evaluation since the start.
    """

    def __init__(
        self,
        checked: ResolvedRun,
        inputs: Inputs,
        ranks: Ranks,
        engine: TrainEngine,
        built: Built,
        data: Prefetched,
        evaluation: Iterable[Batch],
        log: RunLog,
        requests: StopRequests,
    ) -> None:
        self._config = config = checked.config
        self._task = checked.task
        self._model = checked.model
        self._inputs = dataclasses.asdict(inputs)
        self._checkpoints = checked.folder / CHECKPOINTS
        self._ranks = ranks
        self._engine = engine
        self._before_step = BeforeStep(built.decay, built.condition)
        self._companion = built.companion
        self._utilization = built.utilization
        self._data = data
        self._evaluation = evaluation
        self._log = log
        self._requests = requests
        self._stop: str | None = None  # why all ranks stop, once they have agreed to
        self._bad = BadUpdates(config.train.on_nonfinite, config.train.max_skips)
        self._evaluation_owed = True
        self._saver = Saver(config.checkpoint, self._checkpoints, engine.name, built.companion.state, ranks)
        self.progress = Progress()
        self.shown: list[float] = []

    def resume(self, saved: SavedRun) -> None:
        """Take up a checkpoint: weights, optimizer, decays; the data are where they go on. Collective."""
        self._restore(saved)
        self._evaluation_owed = saved.state.evaluation_owed
        self._bad.load(saved.state.bad_updates)

    def _restore(self, saved: SavedRun) -> None:
        """Take up what a rollback takes up too: weights, optimizer, decays and progress."""
        restore.load(saved.checkpoint, self._companion.state(), self._ranks)
        self._before_step.restore(saved.state.decay, saved.checkpoint.manifest.step)
        self.progress = Progress(saved.checkpoint.manifest.step, saved.state.tokens)
        self._saver.saved_at = self.progress.step

    def run(self) -> bool:
        """Train until the last update, or ``train.stop_after``.

        Returns:
            Whether the run is finished.

        Raises:
            Preempted: a rank was asked to stop, and what was done is saved.
            RunError: updates that are not finite, see :mod:`alphadecay_dist.training.bad_updates`; data that
                cannot be read any more; a checkpoint or a log that cannot be written.
        """
        steps = self._config.train.steps
        end = min(steps, self._config.train.stop_after or steps)
        with self._progress_bar() as bar, logging_redirect_tqdm([LOGGER]):  # lines beside the bar
            self._evaluate_if_owed(bar)
            while self.progress.step < end and not self._stop:
                self._update(bar)
                step = self.progress.step
                self._evaluate_if_owed(bar)
                if self._stop or step == end or _due(step, self._config.checkpoint.every):
                    self._save_once()
            self._saver.finish()
            self._poll_stop()  # the last lines may have failed
        if self._stop and (self.progress.step < end or self._evaluation_owed):
            raise Preempted(self._stop)
        return self.progress.step >= steps

    def _update(self, bar: Any) -> None:
        """One optimizer update: read batches -> gradients -> agree -> step -> record.

        Where it is not finite it is counted, and skipped or gone back from: see :meth:`_not_applied`.
        """
        begin = time.perf_counter()
        step = self.progress.step + 1
        rate = learning_rate(step, self._config.train.steps, self._config.optimizer)
        batches, targets = self._read_batches(step)
        summed = self._gradients(batches, targets, rate)
        agreed = self._agree(summed, targets)
        applied = self._engine.step(self._before_step)
        seconds = time.perf_counter() - begin
        if agreed.stopping:
            self._poll_stop()
        loss, norm = agreed.loss / agreed.targets, self._engine.grad_norm
        if applied:
            self._bad.applied()
            self._companion.after_update(step)
        elif self._not_applied(f"update {step}: loss {loss}, gradient norm {norm}", bar):
            return
        self.progress = Progress(step, self.progress.targets + int(agreed.targets))
        speed = agreed.targets / seconds
        record = {
            "step": step,
            "loss": loss,
            "lr": rate,
            "grad_norm": norm,
            self._task.targets: self.progress.targets,
            f"{self._task.targets}_per_second": speed,
            "step_seconds": seconds,
            "mfu": self._utilization.of(seconds),
            **self._before_step.numbers(),
            **({} if applied else {"skipped": True}),
        }
        self._record(record, batches)
        if agreed.saved:
            self._saver.finish()
        self._evaluation_owed = step == self._config.train.steps or _due(step, self._config.eval.every)
        bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} {self._task.targets}/s", False)
        bar.update()

    def _read_batches(self, step: int) -> tuple[Sequence[Batch], Tensor]:
        """This rank's micro-batches, and the targets of all ranks' (1, on the device).

        Raises:
            RunError: a rank's data cannot be read; what is finished was saved.
        """
        before = self._data.state()
        batches: Sequence[Batch] = []
        failure = None
        try:
            batches = self._data.next_update()
        except UserError as error:  # no mistake in what was given any more: the run fails, and may be resumed
            failure = str(error)
        targets = float(sum(batch.targets for batch in batches))
        summed = self._ranks.sum_on_device(targets, float(failure is not None))
        if summed[1] > 0:  # waits for the device, which has no other work yet
            failures = [text for text in self._ranks.gather(failure) if text is not None]
            self._data.load(before)  # the ranks that have the update give it back
            if self.progress.step:
                self._save_once()
                self._saver.finish()
            raise RunError(f"update {step}: {failures[0]}")
        return batches, summed[:1].clamp_min(1)

    def _gradients(self, batches: Sequence[Batch], targets: Tensor, rate: float) -> Tensor:
        """The gradients of an update; returns this rank's summed loss, which nobody waits for."""
        self._engine.set_learning_rate(rate)
        # The engine takes the mean over ranks: times their number, it is the sum over all targets' losses.
        scale = (self._ranks.world_size / targets[0]).float()
        return self._engine.gradients(self._losses(batches), scale)

    def _agree(self, summed: Tensor, targets: Tensor) -> _Agreed:
        """What all ranks know after the gradients, in one sum: the update's only wait for the device."""
        flags = float(self._requests.waiting), float(self._saver.written)
        sums = self._ranks.sum_on_device(summed, *flags)
        loss, stopping, written, number = torch.cat([sums, targets]).tolist()
        return _Agreed(loss, number, stopping > 0, written == self._ranks.world_size)

    def _record(self, record: Mapping[str, Any], batches: Sequence[Batch]) -> None:
        """An update's line in metrics.jsonl; if asked, in sequences.jsonl; and what was found before it."""
        self._log.line(METRICS, record, tracked=_due(record["step"], self._config.logging.every))
        if self._config.logging.sequences:
            mine = [digest for batch in batches for digest in batch.digests()]
            consumed = [digest for each in self._ranks.gather(mine) for digest in each]
            self._log.line(SEQUENCES, {"step": record["step"], "sequences": consumed}, tracked=False)
        self._before_step.write(self._log)

    def _not_applied(self, what: str, bar: Any) -> bool:
        """Count an update that is not finite; returns whether the run went back to a checkpoint for it."""
        self._saver.finish()  # this may be the end, or a way back to that checkpoint
        self._bad.count(what)
        back = self._config.train.on_nonfinite == ROLLBACK
        if back:
            self._roll_back(what)
            bar.n = self.progress.step
        done = f"back to update {self.progress.step}" if back else "skipped"
        self._log.say(f"{what}: {done} ({self._bad.total} bad updates so far)")
        return back

    def _roll_back(self, what: str) -> None:
        """Go back to the last checkpoint, but on with the data: the bad update's are not taken again."""
        checkpoint = newest(self._checkpoints, self._ranks)
        if checkpoint is None:
            raise RunError(f"{what}; there is no checkpoint yet to go back to: see --checkpoint.every")
        self._restore(saved_run(checkpoint))
        self._log.go_back(self.progress.step)

    def _evaluate_if_owed(self, bar: Any) -> None:
        """Evaluate, if that is due and nobody wants to stop; else it is left to the next start."""
        if not self._evaluation_owed or self._stop:
            return
        bar.set_description("evaluating")
        numbers = self._evaluate()
        if numbers is None:
            return
        self._evaluation_owed = False
        self._log.line(EVAL, {"step": self.progress.step, **numbers})
        bar.set_description("training")
        name = self._task.shown
        self.shown.append(numbers[name])
        self._log.say(f"update {self.progress.step}: validation {name} {numbers[name]:.2f}")

    def _evaluate(self) -> dict[str, float] | None:
        """The evaluation's numbers, the same on every rank; None where a request to stop came between."""
        found: dict[str, float] = {}
        for prefix, weights in self._companion.evaluations(self.progress.step).items():
            with weights:
                mine = self._engine.evaluate(self._measurements())
            if self._stop:
                return None
            *sums, targets = self._ranks.sum(*mine)
            numbers = self._model.numbers(sums, targets)
            found |= {f"{prefix}{name}": number for name, number in numbers.items()}
        return found

    def _until_asked(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches until a rank is asked to stop; every rank has as many, and leaves off at the same one."""
        for number, batch in enumerate(batches):
            if number % STOP_POLL_EVERY == 0:
                (asked,) = self._ranks.sum(float(self._requests.waiting))
                if asked:
                    self._poll_stop()
                    return
            yield batch

    def _losses(self, batches: Iterable[Batch]) -> Iterator[Loss]:
        """The loss of each batch, as a function of the model."""
        for batch in batches:
            yield functools.partial(_called, self._model.loss, batch.to(self._engine.device))

    def _measurements(self) -> Iterator[Loss]:
        """What is measured of each batch of an evaluation, and its targets, as a function of the model."""
        for batch in self._until_asked(self._evaluation):
            targets = batch.targets  # counted on the CPU: nobody waits for the device
            yield functools.partial(_measured, self._model.measure, batch.to(self._engine.device), targets)

    def _save_once(self) -> None:
        """Save, unless this update's checkpoint is there; and hear who was asked to stop meanwhile.

        A log that could not be written is heard of before: a checkpoint is never ahead of the files.
        """
        if self._saver.saved_at == self.progress.step:
            return
        self._poll_stop()
        self._bad.saved()
        self._saver.save(self.progress.step, self._state())
        self._poll_stop()

    def _poll_stop(self) -> None:
        """Hear which ranks want to stop, or cannot go on; a checkpoint that is under way then is finished."""
        try:
            agreed = self._requests.agree(self._ranks)
        except RunError:
            self._saver.finish()
            raise
        self._stop = self._stop or agreed

    def _state(self) -> dict[str, Any]:
        """What a resume needs beside weights and optimizer; collective."""
        lanes: dict[str, Any] = {}
        for states in self._ranks.gather(self._data.state()):
            lanes.update(states)
        return {
            "config": as_dict(self._config),
            "tokens": self.progress.targets,  # of any task: the first one had tokens
            "lanes": lanes,
            "evaluation_owed": self._evaluation_owed,
            "bad_updates": self._bad.state(),
            "decay": self._before_step.state(),
            "inputs": self._inputs,
        }

    def _progress_bar(self) -> Any:
        """Loss, speed and time left on rank 0; a line every 10 s at most where no terminal reads it."""
        return tqdm(
            total=self._config.train.steps,
            initial=self.progress.step,
            desc="training",
            unit="update",
            disable=not self._ranks.is_main,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 10,
        )


def _called(function: Callable[[nn.Module, Any], Tensor], batch: Batch, model: nn.Module) -> Tensor:
    return function(model, batch)


def _measured(
    function: Callable[[nn.Module, Any], Tensor], batch: Batch, targets: int, model: nn.Module
) -> Tensor:
    """What a function measures, and behind it the targets: (k + 1,), fp64."""
    found = function(model, batch).flatten().double()
    return torch.cat([found, found.new_tensor([targets])])


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
