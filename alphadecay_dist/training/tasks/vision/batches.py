"""What a micro-batch of images holds."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

Own = TypeVar("Own", bound="_Tensors")
PADDING = -1  # the label of an image that is none


class _Tensors:
    """A dataclass of tensors that have a row for each image."""

    def _each(self: Own, change: Callable[[Tensor], Tensor]) -> Own:
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return type(self)(**{name: change(tensor) for name, tensor in named.items()})

    def pinned(self: Own) -> Own:
        """The batch in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def to(self: Own, device: torch.device) -> Own:
        """The batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def digests(self) -> list[str]:
        """16 hex digits of each image with all that belongs to it, in order."""
        rows = zip(*(getattr(self, field.name) for field in dataclasses.fields(self)), strict=True)  # type: ignore[arg-type]
        return [_digest(row) for row in rows]


@dataclass(frozen=True)
class TrainingBatch(_Tensors):
    """Images (b, c, h, w), soft ``labels`` (b, classes) and ``draws`` (b, k) for drop paths, all fp32."""

    images: Tensor
    labels: Tensor
    draws: Tensor

    @property
    def targets(self) -> int:
        """Number of images."""
        return len(self.images)

    def rows(self, start: int, stop: int) -> TrainingBatch:
        """Some of the images."""
        return self._each(lambda tensor: tensor[start:stop])


@dataclass(frozen=True)
class ValidationBatch(_Tensors):
    """Images (b, c, h, w), fp32, and ``labels`` (b,), int64; those of padding are PADDING."""

    images: Tensor
    labels: Tensor

    @property
    def targets(self) -> int:
        """Number of images without padding."""
        return int((self.labels != PADDING).sum())

    def scores(self, logits: Tensor) -> Tensor:
        """Summed cross entropy, and how many labels are the first, and among the first five.

        Args:
            logits: (b, classes), fp32.

        Returns:
            (3,), fp32.
        """
        loss = functional.cross_entropy(logits, self.labels, ignore_index=PADDING, reduction="sum")
        first = logits.topk(min(5, logits.shape[1])).indices == self.labels.unsqueeze(1)  # (b, 5)
        return torch.stack([loss, first[:, 0].sum().float(), first.any(1).sum().float()])


def _digest(row: tuple[Tensor, ...]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in row:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
