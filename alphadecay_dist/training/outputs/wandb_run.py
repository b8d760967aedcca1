"""The wandb run beside a run's own files: what fails in it is a warning."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphadecay_dist.errors import UserError, warn
from alphadecay_dist.files import write_atomically


class Tracker:
    """The wandb run of rank 0; with the mode ``off`` it does nothing.

    A failure is a warning: wandb ends, training goes on.

    Args:
        mode: ``online``, ``offline``, ``off``, or ``auto``: online where wandb is logged in.
        folder: the output directory, which keeps wandb's files and the id of its run.
        config: shown by wandb.
        resumed: whether the run goes on from a checkpoint.

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
        """Send one record, without its values that are None; ``step`` counts updates."""
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
        """Go on without wandb: no update may be lost for it."""
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
    """Whether wandb can be online without asking: its settings have a key or token, or netrc has one."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    from wandb.errors import AuthenticationError  # noqa: PLC0415
    from wandb.sdk.lib import wbauth  # noqa: PLC0415  (knows the hosts that one login serves)

    try:
        in_netrc = wbauth.read_netrc_auth(host=settings.base_url)
    except AuthenticationError:  # what is there does not have the form of a key
        return False
    return bool(settings.api_key or settings.identity_token_file or in_netrc)


def _run_id(folder: Path) -> str:
    """The wandb id of the run in a directory: made once, and used again by a resume."""
    path = folder / "wandb_id"
    if not path.is_file():
        write_atomically(path, os.urandom(6).hex() + "\n")
    return path.read_text(encoding="utf-8").strip()
