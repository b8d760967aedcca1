"""Matrices of many kinds, and what their spectra are by fp64 svdvals."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Standard normal entries, fp32."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def heavy(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Entries with a power-law tail, fp32."""
    uniform = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)).clamp_min(1e-4)
    return gaussian(rows, columns, seed + 1) * uniform**-0.7


def spiked(rows: int, columns: int, spread: float, seed: int = 0) -> Tensor:
    """A Gaussian matrix with one direction added: its lambda_max is about ``spread`` lambda_median."""
    matrix = gaussian(rows, columns, seed)
    left, right = gaussian(rows, 1, seed + 1), gaussian(1, columns, seed + 2)
    tall = matrix if rows > columns else matrix.T
    size = torch.linalg.eigvalsh(tall.T @ tall)[min(rows, columns) // 2].sqrt() * math.sqrt(spread)
    return matrix + float(size) * (left / left.norm()) @ (right / right.norm())


def orthogonal(size: int, seed: int = 0) -> Tensor:
    """A random orthogonal matrix, fp64."""
    return torch.linalg.qr(gaussian(size, size, seed).double())[0]


def true_eigenvalues(matrix: Tensor) -> Tensor:
    """Ascending squares of the fp64 singular values."""
    return torch.linalg.svdvals(matrix.detach().double()).square().flip(0)


def true_alpha(matrix: Tensor) -> float:
    """The Hill exponent above the median eigenvalue."""
    tail = true_eigenvalues(matrix)[min(matrix.shape) // 2 :].log()
    return 1 + tail.numel() / float((tail - tail[0]).sum())


MATRICES = {
    "square": gaussian(128, 128),
    "tall": gaussian(172, 64),
    "wide": gaussian(64, 172),
    "fifty": gaussian(50, 50),
    "odd": gaussian(43, 127).repeat(2, 1) + gaussian(86, 127, 5),
    "heavy": heavy(96, 160),
    "heavy_square": heavy(100, 100, 3),
    **{f"spiked_{spread:.0e}": spiked(64, 172, spread) for spread in (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)},
    "bf16": gaussian(96, 160).bfloat16(),
    "fp16": gaussian(96, 160).half(),
    "fp64": gaussian(96, 160).double(),
    "huge": gaussian(64, 96) * 1e20,
    "tiny": gaussian(64, 96) * 1e-20,
    "huge_bf16": (gaussian(64, 96) * 1e20).bfloat16(),
    "denormal": gaussian(64, 96) * 1e-34,
    "transposed_view": gaussian(160, 96).T,
    "strided": gaussian(192, 320)[::2, ::2],
    "requires_grad": gaussian(64, 96).requires_grad_(),
}
