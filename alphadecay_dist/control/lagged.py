"""A refresh in the background: taken now, computed by a host thread, written a fixed number of updates later.

1. At the refresh every rank gathers the matrices that it owns, as ever, and keeps them: a snapshot.
2. One host thread of each rank analyses it while updates go on; on a GPU on a stream of its own. It takes
   part in no collective and changes no setting of the process: training computes as it would without it.
3. ``lag`` updates later the training's own thread waits for it where it must, shares what was found with all
   ranks, and writes. The update is known by counting alone, so that ranks, fast and slow runs, and resumes
   agree; collectives stay in one thread and in their order, so that no second process group is needed.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from alphadecay_dist.control.refresh import Measurement
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.errors import UserError, warn
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.collectives import drain_on_error
from alphadecay_dist.sharding.exchange import Exchange
from alphadecay_dist.spectral import EXACT, Analysis, Estimator, Workers, matmul_precisions

_FLAGS = {"cuda": "torch.backends.cuda.matmul", "cpu": "torch.backends.mkldnn.matmul"}


def device_of(name: str) -> torch.device | None:
    """Where spectra are computed; None is where the matrices arrive.

    Raises:
        UserError: a GPU where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: found 'cuda', but torch sees no GPU here; use device auto or cpu")
    return None if name == "auto" else torch.device(name)


class LaggedRefresher:
    """Begins refreshes in the background of training.

    Args:
        exchange: brings the matrices.
        weights: by unit.
        settings: of the rule.
        estimator: how to read spectra.
        device: where spectra are computed; None is where the matrices arrive.

    Raises:
        UserError: there is a lag, and products are not exact.
    """

    def __init__(
        self,
        exchange: Exchange,
        weights: Mapping[str, Weight],
        settings: Settings,
        estimator: Estimator,
        device: torch.device | None,
    ) -> None:
        self._exchange = exchange
        self._weights = weights
        self._lag = settings.lag
        self._estimator = estimator
        self._device = device
        trained_on = {exchange.device.type, *(w.parameter.device.type for w in weights.values())}
        self._computed_on = {device.type} if device else trained_on
        self._on_host = trained_on == {"cpu"}
        if settings.lag:
            _require_exact_products(self._computed_on)

    @torch.no_grad()
    def begin(self, updates: int) -> PendingRefresh:
        """Take a snapshot after so many updates, and let a host thread analyse it. Collective.

        Raises:
            UserError: products are not exact any more.
        """
        begin = time.perf_counter()
        _require_exact_products(self._computed_on)
        taken = self._snapshot()
        received = self._exchange.received_by_rank()
        # Where training has the host's cores, more than one of them would be missed there.
        workers = 1 if self._on_host else torch.get_num_threads()
        running = BackgroundAnalysis(taken, self._weights, self._estimator, workers)
        seconds = time.perf_counter() - begin
        return PendingRefresh(updates, updates + self._lag, received, seconds, running)

    def _snapshot(self) -> dict[str, Tensor]:
        """The units that this rank owns as they are now, whatever training does to its weights."""
        taken = {}
        with drain_on_error(self._exchange.matrices()) as matrices:
            for unit, tensor in matrices:
                moved = tensor.to(self._device)
                taken[unit] = tensor.clone() if moved is tensor and self._exchange.lends(unit) else moved
        return taken


def _require_exact_products(kinds: Iterable[str]) -> None:
    """Refuse TF32 and bf16 products of fp32 matrices, on the types of devices that may be computed on.

    The precision is one setting of the whole process. A refresh with lag 0 sets it and puts it back while no
    update runs; a thread in the background cannot.
    """
    found = matmul_precisions()
    for kind in sorted(kinds):
        if found[kind] not in EXACT:
            raise UserError(
                f"lag: found {_FLAGS[kind]}.fp32_precision {found[kind]!r}, expected 'ieee': the spectra are "
                "computed in the background, under the same setting; use lag 0, or train in bf16 instead"
            )


class BackgroundAnalysis:
    """An analysis in a host thread of its own.

    The thread keeps no process alive: when this object goes, at the latest when the process ends, the thread
    stops after the matrix that it is at. It is waited for then: a thread inside torch when the interpreter
    goes would abort the process.

    Args:
        taken: the snapshot; each matrix is let go of as soon as it is done.
        weights: the weight of each unit, which knows its parts.
        estimator: how to read alpha.
        workers: host threads for matrices in host memory.
    """

    def __init__(
        self,
        taken: Mapping[str, Tensor],
        weights: Mapping[str, Weight],
        estimator: Estimator,
        workers: int,
    ) -> None:
        stop = threading.Event()
        stream = _side_stream(taken.values())
        units = _handed_out(deque(taken.items()), stop, stream)
        matrices = (matrix for unit, tensor in units for matrix in weights[unit].cut_up(unit, tensor))
        self._future: Future[dict[str, Analysis]] = Future()
        arguments = self._future, Workers(workers), matrices, estimator, stream
        thread = threading.Thread(target=_analyze, args=arguments, name="alphadecay", daemon=True)
        thread.start()
        self.cancel = weakref.finalize(self, _end, thread, stop)

    def analyses(self) -> dict[str, Analysis]:
        """Wait for what was found; nothing where the thread failed, for the other ranks wait for this one."""
        try:
            return self._future.result()
        except Exception as error:
            warn(f"the spectra of this rank failed: {type(error).__name__}: {error}")
            return {}


def _analyze(
    future: Future[dict[str, Analysis]],
    workers: Workers,
    matrices: Iterable[tuple[str, Tensor]],
    estimator: Estimator,
    stream: torch.cuda.Stream | None,
) -> None:
    """The thread's work."""
    place: AbstractContextManager[Any] = torch.cuda.stream(stream) if stream else contextlib.nullcontext()
    try:
        with torch.no_grad(), place:
            future.set_result(workers.analyze_each(matrices, estimator))
    except BaseException as error:  # it is raised where the result is waited for
        future.set_exception(error)


def _handed_out(
    units: deque[tuple[str, Tensor]], stop: threading.Event, stream: torch.cuda.Stream | None
) -> Iterator[tuple[str, Tensor]]:
    """The snapshot one by one, none kept, until it is done or the thread is to stop."""
    while units and not stop.is_set():
        unit, tensor = units.popleft()
        if stream is not None and tensor.is_cuda:
            tensor.record_stream(stream)  # its memory came from another, which must not have it back too soon
        yield unit, tensor


def _side_stream(taken: Iterable[Tensor]) -> torch.cuda.Stream | None:
    """A stream that begins where the snapshot is complete, if that lies on a GPU."""
    device = next((tensor.device for tensor in taken if tensor.device.type == "cuda"), None)
    if device is None:
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def _end(thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    if thread is not threading.current_thread():  # garbage is collected in any thread
        thread.join()


@dataclass
class PendingRefresh:
    """A refresh between its snapshot and its write.

    Attributes:
        step: updates finished before its snapshot.
        write_at: updates finished before its write.
        bytes_received: bytes of weights that each rank received from others.
        seconds: that the snapshot took on this rank.
        running: the analysis; None once its findings are shared.
        found: what all owners found, by part; None until then.
    """

    step: int
    write_at: int
    bytes_received: tuple[int, ...]
    seconds: float = 0.0
    running: BackgroundAnalysis | None = None
    found: dict[str, Measurement] | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain data, once it is shared; null where undefined."""
        assert self.found is not None
        return {
            "step": self.step,
            "write_at": self.write_at,
            "bytes_received": list(self.bytes_received),
            "found": {part: _as_list(found) for part, found in self.found.items()},
        }


def _as_list(found: Measurement) -> list[Any]:
    """What was found of a part, without what it has not."""
    metrics = [dict(found.metrics)] if found.metrics or found.histogram else []
    histogram = [asdict(found.histogram)] if found.histogram else []
    return [found.alpha, found.value, found.status, found.owner, *metrics, *histogram]
