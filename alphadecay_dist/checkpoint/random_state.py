"""The states of this rank's random generators as tensors: dropout draws the same after a resume."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping

import numpy
import torch
from torch import Tensor

PREFIX = "random/"  # of their keys in a rank's file


def random_state() -> dict[str, Tensor]:
    """The states of the generators of Python, numpy and torch, on CPU and on this rank's GPU; uint8."""
    version, words, gauss = random.getstate()
    name, keys, *rest = numpy.random.get_state(legacy=True)
    states = {
        "python": _packed([version, list(words), gauss]),
        "numpy": _packed([name, [int(key) for key in keys], *rest]),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {PREFIX + name: state for name, state in states.items()}


def set_random_state(states: Mapping[str, Tensor]) -> None:
    """Set the generators to states that :func:`random_state` gave; those without one stay as they are."""
    setters: dict[str, Callable[[Tensor], object]] = {
        "python": _set_python,
        "numpy": lambda state: numpy.random.set_state(tuple(_unpacked(state))),
        "torch": torch.set_rng_state,
    }
    if torch.cuda.is_available():
        setters["cuda"] = torch.cuda.set_rng_state
    for name, set_state in setters.items():
        if PREFIX + name in states:
            set_state(states[PREFIX + name])


def _set_python(state: Tensor) -> None:
    version, words, gauss = _unpacked(state)
    random.setstate((version, tuple(words), gauss))


def _packed(state: object) -> Tensor:
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def _unpacked(state: Tensor) -> list:
    return json.loads(bytes(state.tolist()))
