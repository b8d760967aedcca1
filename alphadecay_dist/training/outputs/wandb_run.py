"""The wandb run beside a run's own files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from alphadecay_dist.errors import UserError
from alphadecay_dist.files import write_atomically
from alphadecay_dist.training.outputs.tracker import Record, tagged


class WandbRun:
    """The wandb run of rank 0.

    Args:
        mode: ``online``, ``offline``, or ``auto``: online where wandb is logged in.
        folder: the output directory, which keeps wandb's files and the id of its run.
        config: shown by wandb.
        resumed: whether the run goes on from a checkpoint.

    Raises:
        UserError: a new run asks for ``online``, and wandb does not start.
    """

    def __init__(self, mode: str, folder: Path, config: dict[str, Any], resumed: bool) -> None:
        try:
            self.run: Any = _wandb_run(mode, folder, config, resumed)
            self.run.define_metric("*", step_metric="step")
        except Exception as error:  # wandb and what it writes raise a dozen unrelated types
            if mode == "online" and not resumed:
                reason = " ".join(str(error).split())
                raise UserError(
                    f"logging.wandb online: wandb does not start: {reason}; use --logging.wandb=offline"
                ) from None
            raise

    def log(self, kind: str, step: int, record: Record) -> None:
        """See :meth:`.tracker.Tracker.log`."""
        self.run.log({"step": step, **tagged(kind, record)})

    def go_back(self, step: int) -> None:
        """What was sent stays: wandb shows the last value of a step."""

    def close(self, exit_code: int) -> None:
        """End the run."""
        self.run.finish(exit_code=exit_code)


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
