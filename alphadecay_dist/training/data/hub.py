"""C4, streamed from the hub.

The shuffle buffers of ``datasets`` lose and repeat documents on resume; its plain streams, used here, do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data.documents import text_of

C4 = ("allenai/c4", "en")
COMMIT = re.compile(r"@([0-9a-f]{40})/")  # in the URL of a file on the hub


@dataclass(frozen=True)
class HubFiles:
    """The files of a stream.

    Attributes:
        stream: a ``datasets.IterableDataset`` without shuffling; each of its shards is a file.
        field: the column of the text.
        where: its name in errors.
        revision: the commit that is read; None if unknown.
    """

    stream: Any
    field: str
    where: str
    revision: str | None = None

    def __len__(self) -> int:
        return self.stream.num_shards

    def name(self, _: int) -> str:
        """The name of a file in errors: that of the stream."""
        return self.where

    def texts(self, file: int, start: int) -> Iterator[str | None]:
        """See :meth:`alphadecay_dist.training.data.documents.Files.texts`."""
        stream = self.stream.shard(num_shards=len(self), index=file)
        for row, record in enumerate(stream.skip(start) if start else stream, start):
            yield text_of(record, self.field, self.where, row)


def open_c4(split: str, revision: str | None = None) -> HubFiles:
    """The ``train`` or the ``validation`` split of C4, at a commit or at the newest one.

    Raises:
        UserError: the hub does not answer, or its cache cannot be written.
    """
    import datasets  # noqa: PLC0415  (slow to load, and not needed for local files)

    # Its own retries can silently take ten minutes per attempt; without them, read_on sees a failure at once.
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    try:
        builder = datasets.load_dataset_builder(*C4, revision=revision)
        stream = builder.as_streaming_dataset(split=split)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise UserError(
                f"data.source c4: the hub's cache cannot be written: {error.strerror}: {error.filename}; "
                "set HF_HOME to a directory that can be"
            ) from error
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.source c4: the hub does not give {C4[0]}: {reason}; "
            "without network give local files: --data.source=PATH"
        ) from error
    found = COMMIT.search(str(builder.config.data_files[split][0]))
    return HubFiles(stream, "text", "c4", found[1] if found else None)
