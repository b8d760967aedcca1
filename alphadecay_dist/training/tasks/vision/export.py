"""A checkpoint -> the directory that timm loads: weights, and a config in the form of its hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf

from alphadecay_dist.checkpoint.reader import Checkpoint
from alphadecay_dist.checkpoint.restore import require_model, stored_weights
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.tasks.vision.augment import normalization
from alphadecay_dist.training.tasks.vision.vit import arguments_of


def timm_writer(
    checkpoint: Checkpoint, config: Config, dtype: torch.dtype, model: str | None
) -> Callable[[Path], None]:
    """What fills a directory for ``timm.create_model("local-dir:PATH", pretrained=True)``.

    Args:
        checkpoint: what to export.
        config: the run's.
        dtype: of the weights on disk.
        model: has to be None: the run's settings hold the model.

    Raises:
        UserError: a model was given, or the checkpoint is another model's.
    """
    if model is not None:
        raise UserError(
            f"--model {model}: an image classifier's settings are in its checkpoint; leave it out"
        )
    options = config.task
    built = timm.create_model(config.model.name, **arguments_of(options))
    require_model(checkpoint, {name: tuple(p.shape) for name, p in built.named_parameters()})
    mean, std = normalization(options.channels)
    images = {
        "input_size": (options.channels, options.image_size, options.image_size),
        "interpolation": "bilinear" if options.interpolation == "random" else options.interpolation,
        "crop_pct": options.crop_pct,
        "mean": mean,
        "std": std,
    }

    def write(folder: Path) -> None:
        built.load_state_dict({name: weight.read() for name, weight in stored_weights(checkpoint).items()})
        save_for_hf(built.to(dtype), str(folder), safe_serialization=True, data_config=images)

    return write
