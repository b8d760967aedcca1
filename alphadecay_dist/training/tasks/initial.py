"""Random initial values that depend on seed and name alone, never on engine or rank."""

from __future__ import annotations

import hashlib

import torch


def generator_for(name: str, seed: int) -> torch.Generator:
    """What draws the initial value of one parameter.

    Args:
        name: the parameter's, in the whole model.
        seed: ``train.seed``.
    """
    return torch.Generator().manual_seed(seed_of(name, seed))


def seed_of(name: str, seed: int) -> int:
    """The seed of a thing that has a name, such as a parameter; arguments as of :func:`generator_for`."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
