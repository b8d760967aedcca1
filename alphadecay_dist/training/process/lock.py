"""An output directory belongs to one run at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from alphadecay_dist.errors import UserError, warn

LOCK = "lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of file systems that have none


class FolderLock:
    """An flock on a file of the directory, which names its holder.

    The kernel drops it with the process, however that ends; the file stays, for removing it would let two
    runs each lock a file of that name.

    Args:
        folder: the output directory.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor: int | None = None

    def before_reading(self) -> None:
        """Take the lock where a run has been, so that what is read of it stands; a new run has none yet.

        Raises:
            UserError: another run has it.
        """
        if self._path.is_file():
            self._take(os.O_RDWR)

    def before_writing(self) -> None:
        """Take the lock, if that is still to be done, and write who has it.

        Raises:
            UserError: another run has it, or began since :meth:`before_reading`.
        """
        if self._descriptor is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._take(os.O_RDWR | os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                raise UserError(self._refusal("another run began")) from None
        assert self._descriptor is not None
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T %z")}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, (json.dumps(holder) + "\n").encode(), 0)

    def release(self) -> None:
        """Give the directory back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self, flags: int) -> None:
        try:
            descriptor = os.open(self._path, flags, 0o666)
        except FileExistsError:
            raise
        except OSError as error:
            raise UserError(
                f"--output_dir {self._path.parent}: its {LOCK} cannot be opened: {error.strerror}; fix that "
                "and start again, or choose another directory"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(self._refusal("another run writes")) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warn(f"{self._path}: {error.strerror}: nothing keeps a second run out of this directory")
        self._descriptor = descriptor
        os.register_at_fork(after_in_child=self.release)  # else the lock stays until such a process ends too

    def _refusal(self, what: str) -> str:
        who = ""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            holder = json.loads(self._path.read_text(encoding="utf-8"))
            who = f", process {holder['pid']} on {holder['host']} since {holder['since']}"
        folder = self._path.parent
        return f"--output_dir {folder}: {what} there{who}; wait for its end, or choose another directory"
