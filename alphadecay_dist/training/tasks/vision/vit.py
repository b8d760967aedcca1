"""timm's vision transformers as the trainer builds them, and their initial values."""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer, init_weights_vit_timm
from torch import Tensor, nn

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.recipe import TrainConfig
from alphadecay_dist.training.tasks.initial import generator_for
from alphadecay_dist.training.tasks.vision.drop_path import with_given_draws
from alphadecay_dist.training.tasks.vision.options import VisionOptions


class Blocks(nn.ModuleList):
    """The blocks of a transformer, one after the other; as a list, engines shard each by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """The last block's output."""
        for block in self:
            x = block(x)
        return x


def arguments_of(options: VisionOptions) -> dict[str, Any]:
    """What makes the model of a recipe of the one that its name stands for; arguments of timm's."""
    sizes = {
        "img_size": options.image_size,
        "in_chans": options.channels,
        "num_classes": options.classes,
        "patch_size": options.patch_size,
        "embed_dim": options.width,
        "depth": options.depth,
        "num_heads": options.heads,
    }
    return {name: value for name, value in sizes.items() if value is not None}


def build(name: str, options: VisionOptions) -> VisionTransformer:
    """A model whose weights have no meaning yet."""
    model = timm.create_model(name, drop_path_rate=options.drop_path, **arguments_of(options))
    model.blocks = Blocks(with_given_draws(block) for block in model.blocks)
    return model


def with_savings(model: VisionTransformer, train: TrainConfig) -> VisionTransformer:
    """The model with what saves memory or time as the recipe says."""
    if train.activation_checkpointing:
        model.set_grad_checkpointing()
    if train.compile:
        for block in model.blocks:
            block.compile()
    return model


def build_on_meta(name: str, options: VisionOptions) -> VisionTransformer:
    """The model's names and shapes without any storage.

    Raises:
        UserError: timm has no such model, or cannot build it with these sizes; it is no vision transformer,
            or
            one whose initial values do not follow from its modules.
    """
    if not timm.is_model(name):
        known = timm.list_models(module="vision_transformer") + timm.list_models(module="deit")
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ", such as 'deit_tiny_patch16_224'"
        raise UserError(f"model.name: found {name!r}, expected a vision transformer of timm{hint}")
    try:
        with torch.device("meta"):
            model = timm.create_model(name, drop_path_rate=options.drop_path, **arguments_of(options))
    except Exception as error:  # timm and torch raise a dozen unrelated types
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"model.name {name}: timm cannot build it with these sizes: {reason}") from None
    if not isinstance(model, VisionTransformer):
        raise UserError(
            f"model.name {name}: is a {type(model).__name__}, expected a VisionTransformer, such as "
            "'deit_tiny_patch16_224'"
        )
    patch = model.patch_embed.patch_size[0]
    if options.image_size % patch:
        raise UserError(
            f"task.image_size: found {options.image_size}, expected a multiple of the patches' {patch}"
        )
    if model.fix_init or model.weight_init_mode or dict(model.named_buffers()):
        raise UserError(f"model.name {name}: its initial values are none of its modules' own; choose another")
    model.blocks = Blocks(with_given_draws(block) for block in model.blocks)
    return model


def random_values(shapes: VisionTransformer, seed: int, cls_std: float | None) -> Callable[[str], Tensor]:
    """Initial values by timm's own rule; they depend on the seed and the module's name alone.

    timm's rule draws one module after the other, so that a value depends on all before it, and on who holds
    them. Here each module has a generator of its own.

    Args:
        shapes: the model, without storage.
        seed: ``train.seed``.
        cls_std: see :class:`.options.VisionOptions`.

    Returns:
        The whole fp32 value of a parameter by its name, on the CPU.
    """

    @functools.lru_cache(maxsize=1)  # weight and bias are asked for one after the other
    def values_in(home: str) -> dict[str, Tensor]:
        return _initialised(shapes.get_submodule(home), generator_for(home, seed))

    def value_of(name: str) -> Tensor:
        if name == "cls_token" and cls_std is not None:
            token = torch.empty(shapes.get_parameter(name).shape)
            return nn.init.trunc_normal_(token, std=cls_std, generator=generator_for(name, seed))
        home, _, own = name.rpartition(".")
        return values_in(home)[own]

    return value_of


def _initialised(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Initial values of a module's own parameters; those of modules inside it stay without storage."""
    alone = copy.copy(module)
    own = dict(module.named_parameters(recurse=False))
    nan = float("nan")
    alone.__dict__["_parameters"] = dict(module._parameters) | {
        name: nn.Parameter(torch.full(p.shape, nan)) for name, p in own.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator.initial_seed())
        init_weights_vit_timm(alone)
    found = {name: alone.get_parameter(name).detach() for name in own}
    assert not any(value.isnan().any() for value in found.values()), "a parameter without an initial value"
    return found
