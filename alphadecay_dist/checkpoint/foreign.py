"""Weights that other programs wrote: safetensors, or trusted pickles, of which only tensors are read.

Which files are read: see :mod:`alphadecay_dist.checkpoint.foreign_files`. What is quantised is refused.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from alphadecay_dist.checkpoint.foreign_files import WeightFiles, weight_files
from alphadecay_dist.checkpoint.quantised import require_plain
from alphadecay_dist.errors import UserError, shown

PICKLES = (".bin", ".pt", ".pth", ".ckpt")  # files that torch.save wrote
HOLDERS = ("state_dict", "model")  # keys under which other trainers keep the weights in it
CONFIG = "config.json"


class ForeignTensor(Protocol):
    """A tensor of such a file: its name and shape are known before it is read."""

    @property
    def file(self) -> Path:
        """Where it is."""

    @property
    def name(self) -> str:
        """Dotted name of the parameter."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""

    @property
    def dtype(self) -> str:
        """Its type on disk, as safetensors or torch name it."""

    def read(self) -> Tensor:
        """All of it, on the CPU."""

    def units(self) -> Iterator[tuple[str, Tensor]]:
        """The tensor by its name; of a stack (three dimensions) each matrix by name and number."""


def foreign_tensors(path: Path, trust: bool, option: str) -> list[ForeignTensor]:
    """The tensors of a file, or of a HF checkpoint's directory.

    Args:
        path: a safetensors file, a pickle by torch.save, or a directory with ``*.safetensors`` or
            ``pytorch_model*.bin``.
        trust: whether pickles may be opened.
        option: the command-line option that says so.

    Returns:
        At least one.

    Raises:
        UserError: there are no weights, or not all of them; a pickle without trust, or one that holds more
            than tensors; a file that cannot be read; a name in two files; quantised weights.
    """
    chosen = weight_files(path)
    found: list[ForeignTensor] = []
    for file in chosen.files:
        if file.suffix not in PICKLES:
            found += _in_safetensors(file)
            continue
        if not trust:
            raise UserError(
                f"{file}: is a pickle, and who made it decides what it does when it is opened; convert it to "
                f"safetensors, or if you trust its maker, add {option}"
            )
        found += _in_pickle(file)
    if not found:
        raise UserError(f"{chosen.files[0]}: holds no tensor; give a whole file")
    _require_one_home(found, chosen)
    config_file = chosen.files[0].parent / CONFIG
    require_plain(found, read_config(config_file) or {}, config_file)
    return found


def read_config(path: Path) -> dict[str, Any] | None:
    """The config.json of a HF checkpoint; None without one.

    Raises:
        UserError: it is not a JSON object, or cannot be read.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {_line(error)}; fetch it again") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: found {shown(config)}, expected a JSON object; fetch it again")
    return config


def _require_one_home(found: Sequence[ForeignTensor], chosen: WeightFiles) -> None:
    """Refuse a name that two files have, and a tensor that is not where the index says."""
    homes: dict[str, Path] = {}
    for tensor in found:
        other = homes.setdefault(tensor.name, tensor.file)
        if other != tensor.file:
            raise UserError(
                f"{tensor.file}: has {shown(tensor.name)}, and so has {other.name}; keep one set of "
                "weights in the directory, or give one file"
            )
    for name, file in chosen.homes.items():
        if name not in homes or homes[name].name != file:
            where = f"it is in {homes[name].name}" if name in homes else "it is not there"
            raise UserError(
                f"{chosen.index}: says that {shown(name)} is in {file}, but {where}; fetch the files again"
            )


@dataclass(frozen=True)
class _InSafetensors:
    """A tensor of a safetensors file, read when it is asked for."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        with safe_open(self.file, framework="pt") as tensors:
            return tensors.get_tensor(self.name)

    def units(self) -> Iterator[tuple[str, Tensor]]:
        if len(self.shape) != 3:
            yield self.name, self.read()
            return
        with safe_open(self.file, framework="pt") as tensors:
            stack = tensors.get_slice(self.name)
            for number in range(self.shape[0]):
                yield f"{self.name}.{number}", stack[number]


@dataclass(frozen=True)
class _InPickle:
    """A tensor that is mapped into memory."""

    file: Path
    name: str
    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        return str(self.tensor.dtype).removeprefix("torch.")

    def read(self) -> Tensor:
        return self.tensor

    def units(self) -> Iterator[tuple[str, Tensor]]:
        if self.tensor.ndim != 3:
            yield self.name, self.tensor
            return
        yield from ((f"{self.name}.{number}", matrix) for number, matrix in enumerate(self.tensor))


def _in_safetensors(file: Path) -> Iterator[_InSafetensors]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no dict)
                header = tensors.get_slice(name)
                yield _InSafetensors(file, name, tuple(header.get_shape()), header.get_dtype())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read: {_line(error)}; give a whole file") from None


def _in_pickle(file: Path) -> Iterator[_InPickle]:
    content = _unpickled(file)
    holders = [content, *(content.get(key) for key in HOLDERS)] if isinstance(content, dict) else []
    for holder in holders:
        named = _tensors(holder.items()) if isinstance(holder, dict) else {}
        if named:
            for name, tensor in named.items():
                _require_own(file, name, tensor)
                yield _InPickle(file, name, tensor)
            return
    raise UserError(
        f"{file}: has no tensors by name, expected a state dict, or one as {' or '.join(HOLDERS)}"
    )


def _unpickled(file: Path) -> Any:
    """What torch.save wrote; torch builds only tensors and plain containers from it."""
    try:
        # Files written before torch 1.6 are not zip archives, and cannot be mapped.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError as error:
        raise UserError(
            f"{file}: holds other things than tensors, which are not opened, trusted or not: "
            f"{_line(error)}; save the state dict alone, or as safetensors"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(
            f"{file}: cannot be read: {type(error).__name__}: {_line(error)}; give a whole file"
        ) from None


def _tensors(items: Iterable[tuple[Any, Any]]) -> dict[str, Tensor]:
    return {name: value for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}


def _require_own(file: Path, name: str, tensor: Tensor) -> None:
    """Refuse a tensor that the file does not hold element by element."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise UserError(f"{file}: {name!r:.80} is not a plain tensor; save it dense")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
