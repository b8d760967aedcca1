"""What a run leaves behind: JSON lines, status and config in the output directory, and wandb beside them."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphadecay_dist.control.refresh import DECAY, Refresh
from alphadecay_dist.errors import UserError, warn
from alphadecay_dist.files import write_atomically
from alphadecay_dist.json_fields import count, counted, get

METRICS, EVAL, SEQUENCES = "metrics.jsonl", "eval.jsonl", "sequences.jsonl"
STATUS = "status.json"


class RunFiles:
    """The files of one output directory; rank 0 alone has one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._status = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Add a line, on disk before the next update; a number that is not finite becomes null."""
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(record), allow_nan=False) + "\n")

    def keep_until(self, step: int, evaluated: int | None = None) -> None:
        """Drop what was written after a checkpoint at ``step``: those updates are done again.

        Args:
            step: a refresh written at it comes after the checkpoint.
            evaluated: the last evaluation before the checkpoint; ``step`` where it is not given.
        """
        for name, last in (
            (METRICS, step),
            (EVAL, step if evaluated is None else evaluated),
            (SEQUENCES, step),
            (DECAY, step - 1),
        ):
            path = self.folder / name
            if path.is_file():
                lines = [line for line in read_lines(path) if line.get("written_at", line["step"]) <= last]
                write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))

    def status(self, state: str, step: int, exit_code: int | None = None, reason: str | None = None) -> None:
        """Replace status.json: running, preempted, finished or failed; from any thread."""
        record = {"state": state, "step": step, "exit_code": exit_code, "reason": reason}
        if self._status.acquire(timeout=2):  # a disk that hangs is not to keep a rank from ending
            try:
                _replace(self.folder / STATUS, json.dumps(record) + "\n")
            finally:
                self._status.release()

    def text(self, name: str, text: str) -> None:
        """Replace a text file."""
        write_atomically(self.folder / name, text)


def _replace(path: Path, text: str) -> None:
    """Replace a small file; a disk that is full has room for it where the old one is."""
    try:
        write_atomically(path, text)
    except OSError:
        if not path.is_file():
            raise
        with path.open("r+", encoding="utf-8") as file:
            file.write(text)
            file.truncate()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, which count steps; a last line that was cut short is left out.

    Raises:
        UserError: a line is no record.
    """
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
            count(record, "step")
            counted(record.get("written_at", 0), "written_at")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is no record: {error}; take it out") from None
        records.append(record)
    return records


def read_status(folder: Path) -> dict[str, Any] | None:
    """The status.json of a run, None where there is none that can be read."""
    try:
        status = json.loads((folder / STATUS).read_text(encoding="utf-8"))
        get(status, "state", str)
        count(status, "step")
    except (OSError, ValueError, RecursionError):
        return None
    return status


def modules_by_type(names: Mapping[str, Any]) -> dict[str, list[str]]:
    """Module names by type (q, k, v, o, gate, up, down), in the model's order."""
    types: dict[str, list[str]] = {}
    for name in names:
        types.setdefault(name.rsplit(".", 1)[-1].removesuffix("_proj"), []).append(name)
    return types


def means_by_type(refresh: Refresh) -> dict[str, float]:
    """Mean alpha and mean decay by module type, as ``alpha/q``, ``weight_decay/q`` and so on."""
    means = {}
    for kind, names in modules_by_type(refresh.modules).items():
        alphas = [a for name in names if (a := refresh.modules[name].alpha) is not None]
        if alphas:
            means[f"alpha/{kind}"] = math.fsum(alphas) / len(alphas)
        decays = [refresh.modules[name].weight_decay for name in names]
        means[f"weight_decay/{kind}"] = math.fsum(decays) / len(decays)
    return means


class Tracker:
    """The wandb run of rank 0; with ``off`` it takes records and does nothing.

    What fails in it is a warning, and ends it alone.

    Raises:
        UserError: a new run asks for ``online``, and wandb does not start.
    """

    def __init__(self, mode: str, folder: Path, config: dict[str, Any], resumed: bool) -> None:
        self._run: Any = None
        if mode == "off":
            return
        try:
            self._run = _wandb_run(mode, folder, config, resumed)
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # wandb and what it writes raise a dozen unrelated types
            reason = " ".join(str(error).split())
            if mode == "online" and not resumed:
                raise UserError(
                    f"logging.wandb online: wandb does not start: {reason}; use --logging.wandb=offline"
                ) from None
            self._give_up(f"does not start: {reason}")

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Send one record; ``step`` counts updates."""
        if self._run is not None:
            try:
                self._run.log({"step": step, **{k: v for k, v in record.items() if v is not None}})
            except Exception as error:
                self._give_up(f"failed at update {step}: {' '.join(str(error).split())}")

    def close(self, exit_code: int) -> None:
        """End the run."""
        if self._run is not None:
            try:
                self._run.finish(exit_code=exit_code)
            except Exception as error:
                self._give_up(f"did not end well: {' '.join(str(error).split())}")

    def _give_up(self, why: str) -> None:
        """The run goes on without wandb: no wandb is worth an update."""
        self._run = None
        warn(f"wandb {why}; the run goes on without it")


def _wandb_run(mode: str, folder: Path, config: dict[str, Any], resumed: bool) -> Any:
    import wandb  # noqa: PLC0415  (slow to load, and not wanted with "off")

    online = mode == "online" or (mode == "auto" and _logged_in(wandb.setup().settings))
    return wandb.init(
        project="alphadecay_dist",
        name=folder.name,
        id=_run_id(folder),
        dir=str(folder),
        mode="online" if online else "offline",
        config=config,
        resume="allow" if resumed else None,
        settings=wandb.Settings(silent=True, console="off"),
    )


def _logged_in(settings: Any) -> bool:
    """Whether wandb can be online without asking: a key or token in its settings, or one in netrc."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    from wandb.errors import AuthenticationError  # noqa: PLC0415
    from wandb.sdk.lib import wbauth  # noqa: PLC0415  (knows the hosts that one login serves)

    try:
        in_netrc = wbauth.read_netrc_auth(host=settings.base_url)
    except AuthenticationError:  # no key has that form
        return False
    return bool(settings.api_key or settings.identity_token_file or in_netrc)


def _run_id(folder: Path) -> str:
    """The wandb id of the run in a directory: made once, kept for resumes."""
    path = folder / "wandb_id"
    if not path.is_file():
        write_atomically(path, os.urandom(6).hex() + "\n")
    return path.read_text(encoding="utf-8").strip()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
