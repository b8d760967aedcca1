"""Random initial weights by seed and name, as the architecture's own initialisation draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.tasks.initial import seed_of
from alphadecay_dist.training.tasks.language.llama import initial_value


def random_values(shapes: Any, seed: int) -> Callable[[str], Tensor]:
    """Initial values that depend on the seed and the parameter's name alone, never on engine or rank.

    Args:
        shapes: the model, without storage.
        seed: ``train.seed``.
    """
    if type(shapes.config) is LlamaConfig:
        sizes = {name: tuple(parameter.shape) for name, parameter in shapes.named_parameters()}
        std = shapes.config.initializer_range
        return lambda name: initial_value(name, sizes[name], std, seed)
    return lambda name: drawn(shapes, name, seed)


def drawn(shapes: Any, name: str, seed: int) -> Tensor:
    """The fp32 initial value of one parameter, by ``_init_weights`` of its architecture, on the CPU.

    That parameter alone has storage, so the others draw nothing. Modules are initialised from the inside out,
    as transformers does: GPT-2's blocks draw their last projections again, with a smaller spread.

    Raises:
        UserError: the architecture does not initialise it.
    """
    holder, _, key = name.rpartition(".")
    home = shapes.get_submodule(holder)
    meta = home._parameters[key]
    value = nn.Parameter(torch.full(meta.shape, torch.nan, dtype=torch.float32))
    home._parameters[key] = value
    try:
        with torch.no_grad(), _seeded(seed_of(name, seed)):
            for initialise, module in _inside_out(shapes, holder):
                initialise(module)
    finally:
        home._parameters[key] = meta
    if value.isnan().any():
        raise UserError(
            f"model.name: {type(shapes).__name__} of transformers does not initialise {name}: begin with "
            "weights that are there, by --init_from"
        )
    return value.detach()


def _inside_out(shapes: Any, holder: str) -> Iterator[tuple[Callable[[nn.Module], None], nn.Module]]:
    """The modules that hold a parameter, the nearest first, each with what initialises it."""
    parts = holder.split(".")
    path: list[nn.Module] = [shapes]
    for part in parts:
        path.append(path[-1].get_submodule(part))
    models = [number for number, module in enumerate(path) if isinstance(module, PreTrainedModel)]
    for number in reversed(range(len(path))):
        owner: Any = path[max(own for own in models if own <= number)]
        yield owner._init_weights, path[number]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The generator that initialisations draw from, at a seed; as it was, behind it."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
