"""Images with labels, each read by its number: arrays, folders, the hub."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Callable, Iterable
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
    """Image files, as torchvision's ImageFolder finds them: a folder a class."""

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
        except (OSError, ValueError, SyntaxError) as error:  # SyntaxError: PIL's for a broken PNG
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
    split = _idx(folder) if list(folder.glob("*-idx?-ubyte*")) else _folders(folder)
    for name, images in (("training", split.train), ("validation", split.validation)):
        if not len(images):
            raise UserError(f"data.source {folder}: has no {name} image")
    return split


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
    from torchvision.datasets import ImageFolder  # noqa: PLC0415  (for this source alone)

    roots, found = {}, {}
    for split, names in SPLITS.items():
        there = [folder / name for name in names if (folder / name).is_dir()]
        if not there:
            raise UserError(
                f"data.source {folder}: has neither idx files nor a folder {' or '.join(names)}; expected "
                "train/CLASS/ and val/CLASS/ with images"
            )
        roots[split] = there[0]
        try:
            found[split] = ImageFolder(str(there[0]))
        except (OSError, RuntimeError, FileNotFoundError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"data.source {there[0]}: {reason}") from None
    train, validation = found["train"], found["validation"]
    if train.classes != validation.classes:
        odd = sorted(set(train.classes) ^ set(validation.classes))
        raise UserError(f"data.source {folder}: the class {odd[0]!r} is in one of train and validation alone")
    listed = {str(roots[split].relative_to(folder)): found[split].samples for split in SPLITS}
    return Split(
        FileImages(train.samples),
        FileImages(validation.samples),
        classes=len(train.classes),
        marks=lambda: _marks(folder, listed),
    )


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
