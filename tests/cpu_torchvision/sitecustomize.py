"""Lets torchvision be imported beside a torch without CUDA, by every Python that has this folder on its path.

torchvision's wheel on PyPI is built for CUDA. Without CUDA's libraries its own operators are not loaded, and
its import then fails, for it describes two that nobody has defined. Nothing here needs them, so they are
declared.
"""

from __future__ import annotations

import sys


class DeclareOperators:
    """Acts once, where torchvision is about to describe its operators, and has not found them."""

    kept: list = []  # noqa: RUF012  (a library of operators lives as long as its object)

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision._meta_registrations":
            sys.meta_path.remove(cls)
            if not sys.modules["torchvision.extension"]._has_ops():
                import torch

                library = torch.library.Library("torchvision", "DEF")
                library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                cls.kept.append(library)


if not any(getattr(finder, "__name__", "") == DeclareOperators.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, DeclareOperators)
