"""Images with labels, each read by its number: arrays, folders, the hub."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.fingerprint import FileMark, Marks, marks_of
from alphadecay_dist.training.recipe import DataConfig

DIGITS = ("digits", "demo")
HELD_OUT = 5  # of the digits every fifth, in their order
SPLITS = {"train": ("train",), "validation": ("val", "validation", "test")}  # names of folders
IDX = {"train": "train", "validation": "t10k"}  # how names of idx files begin
MARKED = 10_000  # files of a split whose content is looked at


class Images(Protocol):
    """Images that can be read in any order."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> tuple[Image.Image, int]:
        """An image and its label.

        Raises:
            UserError: it cannot be read.
        """
        ...


@dataclass(frozen=True)
class Split:
    """Training and validation images of one source.

    Attributes:
        train: the training images.
        validation: the validation images.
        classes: number of labels; None where that is not known.
        marks: finds marks of the local files, if there are any.
        revision: the commit on the hub; None for others.
    """

    train: Images
    validation: Images
    classes: int | None = None
    marks: Callable[[], Marks] | None = None
    revision: str | None = None


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory: ``pixels`` (n, height, width) uint8 and ``labels`` (n,)."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, number: int) -> tuple[Image.Image, int]:
        """See :meth:`Images.read`."""
        return Image.fromarray(self.pixels[number]), int(self.labels[number])


@dataclass(frozen=True)
class FileImages:
    """Image files of known labels."""

    samples: list[tuple[str, int]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, number: int) -> tuple[Image.Image, int]:
        """See :meth:`Images.read`."""
        path, label = self.samples[number]
        try:
            with Image.open(path) as image:
                image.load()
                return image, label
        except Exception as error:  # PIL raises a dozen unrelated types
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"data: {path}: cannot be read as an image: {reason}; repair or remove it"
            ) from None


@dataclass(frozen=True)
class HubImages:
    """A split of a dataset of the hub, with columns ``image`` and ``label``."""

    rows: Any
    where: str

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, number: int) -> tuple[Image.Image, int]:
        """See :meth:`Images.read`."""
        try:
            row = self.rows[number]
            return row["image"], int(row["label"])
        except Exception as error:  # readers raise a dozen unrelated types
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"data: {self.where}: image {number} cannot be read: {reason}") from None


def check_source(config: DataConfig) -> None:
    """Check what can be known without reading.

    Raises:
        UserError: a path that is not there, or a field of text.
    """
    if config.validation is not None or config.prepared is not None:
        raise UserError(
            "data: found validation or prepared, expected neither: images for validation are in data.source"
        )
    if _is_path(config.source) and not Path(config.source).is_dir():
        raise UserError(
            f"data.source {config.source}: no such directory; give one with idx files, one with train/CLASS/ "
            "and val/CLASS/, 'digits', or a name on the hub such as 'imagenet-1k'"
        )


def _is_path(source: str) -> bool:
    """Whether a source is a directory; names on the hub are ``name`` or ``owner/name``."""
    return Path(source).exists() or source.count("/") > 1 or source.startswith((".", "~", "/"))


def open_images(config: DataConfig) -> Split:
    """The images that a recipe names.

    Raises:
        UserError: they are missing or cannot be read.
    """
    check_source(config)
    if config.source in DIGITS:
        return _digits()
    if not _is_path(config.source):
        from alphadecay_dist.training.tasks.vision.hub import open_hub  # noqa: PLC0415  (slow to load)

        return open_hub(config.source, config.revision)
    folder = Path(config.source)
    split = _local(folder)
    for name, images in (("training", split.train), ("validation", split.validation)):
        if not len(images):
            raise UserError(f"data.source {folder}: has no {name} image")
    return split


def _local(folder: Path) -> Split:
    """The images in a folder, by what files are in it."""
    if list(folder.glob("*-idx?-ubyte*")):
        return _idx(folder)
    parquet = sorted(file for place in (folder, folder / "data") for file in place.glob("[!.]*.parquet"))
    if parquet:
        from alphadecay_dist.training.tasks.vision.hub import open_parquet  # noqa: PLC0415  (slow to load)

        return open_parquet(folder, parquet)
    return _folders(folder)


def _digits() -> Split:
    """scikit-learn's handwritten digits, 8 x 8, which come with it."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  (for this source alone)

    found = load_digits()
    pixels = (found.images * (255 / 16)).round().astype(np.uint8)
    held_out = np.arange(len(pixels)) % HELD_OUT == HELD_OUT - 1
    return Split(
        ArrayImages(pixels[~held_out], found.target[~held_out]),
        ArrayImages(pixels[held_out], found.target[held_out]),
        classes=10,
    )


def _idx(folder: Path) -> Split:
    """The four files of MNIST, Fashion-MNIST and their kin, compressed or not."""
    files: dict[tuple[str, str], Path] = {}
    for split, start in IDX.items():
        for kind in ("images-idx3", "labels-idx1"):
            found = sorted(folder.glob(f"{start}-{kind}-ubyte*"))
            if not found:
                raise UserError(
                    f"data.source {folder}: has no {start}-{kind}-ubyte or {start}-{kind}-ubyte.gz"
                )
            files[split, kind] = found[0]
    arrays = {key: _read_idx(path) for key, path in files.items()}
    for split in IDX:
        images, labels = arrays[split, "images-idx3"], arrays[split, "labels-idx1"]
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise UserError(
                f"data.source {folder}: {split}: found images {images.shape} and labels {labels.shape}, "
                "expected (n, height, width) and (n,)"
            )
    train, validation = (
        ArrayImages(arrays[split, "images-idx3"], arrays[split, "labels-idx1"]) for split in IDX
    )
    paths = [str(path) for path in files.values()]
    classes = max(int(images.labels.max(initial=0)) for images in (train, validation)) + 1
    return Split(train, validation, classes, lambda: marks_of(str(folder), paths))


def _read_idx(path: Path) -> np.ndarray:
    """The bytes of an idx file: two zeros, the type 8, the number of sizes, the sizes, the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        if zeros or kind != 8:
            raise ValueError("it is no idx file of bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise UserError(f"data: {path}: cannot be read: {' '.join(str(error).split())[:200]}") from None


def _folders(folder: Path) -> Split:
    """``train/CLASS/*`` and ``val/CLASS/*``; classes are numbered in the order of their names."""
    roots = {split: _root(folder, names) for split, names in SPLITS.items()}
    classes = {split: _classes(root) for split, root in roots.items()}
    odd = sorted(set(classes["train"]) ^ set(classes["validation"]))
    if odd:
        raise UserError(f"data.source {folder}: the class {odd[0]!r} is in one of train and validation alone")
    found = {split: _samples(root, classes[split]) for split, root in roots.items()}
    listed = {str(roots[split].relative_to(folder)): found[split] for split in SPLITS}
    return Split(
        FileImages(found["train"]),
        FileImages(found["validation"]),
        classes=len(classes["train"]),
        marks=lambda: _marks(folder, listed),
    )


def _root(folder: Path, names: Sequence[str]) -> Path:
    """The folder of a split."""
    there = [folder / name for name in names if (folder / name).is_dir()]
    if not there:
        raise UserError(
            f"data.source {folder}: has neither idx files, parquet files nor a folder {' or '.join(names)}; "
            "expected train/CLASS/ and val/CLASS/ with images"
        )
    return there[0]


def _classes(root: Path) -> list[str]:
    """The classes of a split, without what file managers and editors hide beside them."""
    found = sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not found:
        raise UserError(f"data.source {root}: has no folder, expected one for each class, with its images")
    return found


def _samples(root: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    """Files and labels as torchvision finds them, in their order, without hidden ones."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # noqa: PLC0415  (this source alone)

    def is_image(path: str) -> bool:
        return path.lower().endswith(IMG_EXTENSIONS) and f"{os.sep}." not in path[len(str(root)) :]

    numbers = {name: number for number, name in enumerate(classes)}
    found = make_dataset(root, numbers, is_valid_file=is_image, allow_empty=True)
    empty = sorted(numbers.keys() - {classes[label] for _, label in found})
    if empty:
        raise UserError(
            f"data.source {root}: the class {empty[0]!r} has no image, expected files such as *.jpg; fill or "
            "remove its folder in each split"
        )
    return found


def _marks(folder: Path, listed: dict[str, list[tuple[str, int]]]) -> Marks:
    """Marks of the files; of a large split all names in one mark, and the content of some."""
    marks: Marks = {}
    for split, samples in listed.items():
        paths = [path for path, _ in samples]
        if len(paths) > MARKED:
            marks[f"{split}/"] = FileMark(
                len(paths), _digest(str(Path(p).relative_to(folder)) for p in paths)
            )
            paths = paths[:: -(-len(paths) // MARKED)]
        marks |= marks_of(str(folder), paths)
    return marks


def _digest(names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0")
    return digest.hexdigest()[:32]
