"""Images of the Hugging Face hub, through ``datasets``: read by their number, from files in its cache."""

from __future__ import annotations

import re
from typing import Any

import datasets

from alphadecay_dist.errors import UserError
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
        builder = datasets.load_dataset_builder(NAMES.get(name, name), revision=revision)
        builder.download_and_prepare()
        splits = builder.as_dataset()
    except Exception as error:  # the hub's client raises a dozen unrelated types
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"data.source {name}: the hub does not give it: {reason}; without network give a directory: "
            "--data.source=PATH"
        ) from None
    files = next(iter((builder.config.data_files or {"": [""]}).values()))
    found = COMMIT.search(str(files[0]))
    return split_of(splits, name, found[1] if found else None)


def split_of(splits: Any, name: str, revision: str | None) -> Split:
    """Training and validation images of a ``datasets.DatasetDict``.

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
    return Split(train, validation, revision=revision)
