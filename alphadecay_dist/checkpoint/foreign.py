"""Weights that others wrote: safetensors, or pickles of a trusted maker, of which tensors alone are read.

Index files are not opened: what a file holds it tells itself, so that no path in one can lead elsewhere.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from alphadecay_dist.errors import UserError

PICKLES = (".bin", ".pt", ".pth")  # what torch.save wrote, as files are named
HOLDERS = ("state_dict", "model")  # keys under which others keep the weights in it


class ForeignTensor(Protocol):
    """A tensor of such a file: its name and its shape are known before it is read."""

    @property
    def file(self) -> Path:
        """Where it is."""

    @property
    def name(self) -> str:
        """Dotted name of the parameter."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""

    def whole(self) -> Tensor:
        """All of it, on the CPU."""

    def units(self) -> Iterator[tuple[str, Tensor]]:
        """The tensor by its name, or of a stack (three dimensions) each matrix by name and number."""


def foreign_tensors(path: Path, trust: bool, option: str) -> list[ForeignTensor]:
    """The tensors of a file, or of a HF checkpoint's directory; of both kinds safetensors are taken.

    Args:
        path: a safetensors file, a pickle by torch.save, or a directory with ``*.safetensors`` or
            ``pytorch_model*.bin``.
        trust: whether pickles may be opened.
        option: by which the user says so.

    Returns:
        None of them where there is no such file.

    Raises:
        UserError: a pickle without trust, or one that holds more than tensors; a file that cannot be read.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    files = files or sorted(path.glob("pytorch_model*.bin"))
    found: list[ForeignTensor] = []
    for file in files:
        if file.suffix not in PICKLES:
            found += _in_safetensors(file)
            continue
        if not trust:
            raise UserError(
                f"{file}: is a pickle, and who made it decides what it does when it is opened; convert it to "
                f"safetensors, or if you trust its maker, add {option}"
            )
        found += _in_pickle(file)
    return found


@dataclass(frozen=True)
class _InSafetensors:
    """A tensor of a safetensors file, read when it is asked for."""

    file: Path
    name: str
    shape: tuple[int, ...]

    def whole(self) -> Tensor:
        with safe_open(self.file, framework="pt") as tensors:
            return tensors.get_tensor(self.name)

    def units(self) -> Iterator[tuple[str, Tensor]]:
        if len(self.shape) != 3:
            yield self.name, self.whole()
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

    def whole(self) -> Tensor:
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
                yield _InSafetensors(file, name, tuple(tensors.get_slice(name).get_shape()))
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
    """What torch.save wrote; torch builds nothing but tensors and plain containers of it."""
    try:
        # Files of before torch 1.6 are no zip archives, and cannot be mapped.
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
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise UserError(f"{file}: {name!r:.80} is no plain tensor; save it dense")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
