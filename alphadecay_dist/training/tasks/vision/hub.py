"""Images of the Hugging Face hub, through ``datasets``: read by their number, from files in its cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.fingerprint import marks_of
from alphadecay_dist.training.tasks.vision.sources import HubImages, Split

COMMIT = re.compile(r"@([0-9a-f]{40})/")  # in the URL of a file on the hub
NAMES = {"imagenet-1k": "ILSVRC/imagenet-1k"}
VALIDATION = ("validation", "val", "valid", "test")


def open_hub(name: str, revision: str | None) -> Split:
    """The splits of a dataset, downloaded where its cache lacks them.

    Raises:
        UserError: the hub does not give it, or it has no such splits or columns.
    """
    try:
        builder, splits = _prepared(NAMES.get(name, name), revision)
    except Exception as error:  # the hub's client raises a dozen unrelated types
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"data.source {name}: the hub does not give it: {reason}; without network give a directory: "
            "--data.source=PATH"
        ) from None
    files = next(iter((builder.config.data_files or {"": [""]}).values()))
    found = COMMIT.search(str(files[0]))
    return split_of(splits, name, revision=found[1] if found else None)


def open_parquet(folder: Path, files: Sequence[Path]) -> Split:
    """The splits of a dataset of the hub that was downloaded to a folder.

    Args:
        folder: as the hub has it.
        files: the parquet files in it.

    Raises:
        UserError: it cannot be read, or it has no such splits or columns.
    """
    try:
        _, splits = _prepared(str(folder), None)
    except Exception as error:  # readers raise a dozen unrelated types
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"data.source {folder}: its parquet files cannot be read: {reason}") from None
    paths = [str(file) for file in files]
    return split_of(splits, str(folder), marks=lambda: marks_of(str(folder), paths))


def _prepared(name: str, revision: str | None) -> tuple[Any, Any]:
    """A dataset's builder, and its splits."""
    builder = datasets.load_dataset_builder(name, revision=revision)
    builder.download_and_prepare()
    return builder, builder.as_dataset()


def split_of(splits: Any, name: str, **more: Any) -> Split:
    """Training and validation images of a ``datasets.DatasetDict``.

    Args:
        splits: the dataset.
        name: what it is called in messages.
        **more: what else a :class:`.sources.Split` has.

    Raises:
        UserError: it has no such splits or columns.
    """
    held_out = next((split for split in VALIDATION if split in splits), None)
    if "train" not in splits or held_out is None:
        raise UserError(
            f"data.source {name}: has the splits {', '.join(splits)}, expected train and validation"
        )
    for split in ("train", held_out):
        if not {"image", "label"} <= set(splits[split].column_names):
            columns = ", ".join(splits[split].column_names)
            raise UserError(
                f"data.source {name}: {split} has the columns {columns}, expected image and label"
            )
    train, validation = (HubImages(splits[split], f"{name}, {split}") for split in ("train", held_out))
    classes = getattr(splits["train"].features["label"], "num_classes", None)  # a column of numbers has none
    return Split(train, validation, classes, **more)
