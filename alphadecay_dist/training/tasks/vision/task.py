"""Image classification: a vision transformer learns the labels of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.loss import SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from alphadecay_dist.checkpoint.reader import Checkpoint
from alphadecay_dist.engines.training import TrainEngine
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.process.environment import environment
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.state import SavedState
from alphadecay_dist.training.tasks.card import TaskCard
from alphadecay_dist.training.tasks.companion import Companion
from alphadecay_dist.training.tasks.task import Model, Task
from alphadecay_dist.training.tasks.vision import card, export
from alphadecay_dist.training.tasks.vision.augment import check_augmentation
from alphadecay_dist.training.tasks.vision.average import MovingAverage
from alphadecay_dist.training.tasks.vision.batches import TrainingBatch, ValidationBatch
from alphadecay_dist.training.tasks.vision.data import ImageData, check_groups
from alphadecay_dist.training.tasks.vision.drop_path import drop_paths, give_draws
from alphadecay_dist.training.tasks.vision.options import FREE, VisionOptions
from alphadecay_dist.training.tasks.vision.sources import check_source
from alphadecay_dist.training.tasks.vision.vit import (
    arguments_of,
    build,
    build_on_meta,
    random_values,
    with_savings,
)


class VisionModel(Model):
    """A vision transformer of timm.

    Args:
        config: the recipe.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._name, self._options = config.model.name, config.task
        self._shapes = build_on_meta(self._name, self._options)
        self._loss = SoftTargetCrossEntropy()
        self.drop_paths = len(drop_paths(self._shapes))

    @property
    def shapes(self) -> VisionTransformer:
        """The model without storage."""
        return self._shapes

    def values(self) -> dict[str, Any]:
        """Timm's name for it, and the arguments that make the model of that name."""
        return {"architecture": self._name, **arguments_of(self._options)}

    def build(self) -> nn.Module:
        """The model, with what saves memory or time as the recipe says."""
        return with_savings(build(self._name, self._options), self._config.train)

    def initial_values(self, init_from: str | None) -> Callable[[str], Tensor]:
        """Random values."""
        if init_from is not None:
            raise UserError(f"--init_from {init_from}: image classification begins at random; leave it out")
        return random_values(self._shapes, self._config.train.seed, self._options.cls_std)

    def set_buffers(self, model: nn.Module) -> None:
        """There are none."""

    def flops(self) -> float:
        """Of one update, over all ranks: of a forward as torch counts them, times 3 for the backward too."""
        size, channels = self._options.image_size, self._options.channels
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self._shapes.eval()(torch.empty(1, channels, size, size, device="meta"))
        return 3.0 * counter.get_total_flops() * self._config.train.global_batch

    def loss(self, model: nn.Module, batch: TrainingBatch) -> Tensor:
        """Sum of the fp32 cross entropies with soft targets, a scalar."""
        give_draws(model, batch.draws)
        return self._loss(_logits(model, batch.images), batch.labels) * batch.targets

    def measure(self, model: nn.Module, batch: ValidationBatch) -> Tensor:
        """See :meth:`.batches.ValidationBatch.scores`."""
        return batch.scores(_logits(model, batch.images))

    def numbers(self, sums: Sequence[float], targets: float) -> dict[str, float]:
        """Mean cross entropy over all images, and accuracies in percent."""
        loss, top1, top5 = (number / targets for number in sums)
        return {"loss": loss, "top1": 100 * top1, "top5": 100 * top5}

    def companion(self, engine: TrainEngine, model: nn.Module) -> Companion:
        """The moving average, unless it is off."""
        kept = self._options.ema
        return MovingAverage(engine, kept) if kept else super().companion(engine, model)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """(b, classes), fp32; the images come in the type in which the engine holds the weights."""
    return model(images.to(next(model.parameters()).dtype)).float()


class Vision(Task):
    """Image classification."""

    samples = "images"
    targets = "images"
    shown = "top1"
    paths = ("data.source",)
    fixed = (
        "model.name",
        *(f"task.{field.name}" for field in dataclasses.fields(VisionOptions) if field.name not in FREE),
    )

    def model(self, config: Config) -> VisionModel:
        """The vision transformer that ``model.name`` names."""
        return VisionModel(config)

    def check_data(self, config: Config, model: Model) -> None:
        """That there is a directory, that timm knows the augmentation, and that ranks have whole groups."""
        check_source(config.data)
        check_augmentation(config.task)
        check_groups(config, environment("WORLD_SIZE", 1))

    def settle(
        self, config: Config, model: Model, init_from: str | None, before: SavedState | None
    ) -> dict[str, Any]:
        """Which commit of a dataset on the hub."""
        if before is None or before.inputs is None or config.data.revision is not None:
            return {}
        return {"data": dataclasses.replace(config.data, revision=before.inputs.revision)}

    def open(self, config: Config, model: Model) -> ImageData:
        """The images."""
        assert isinstance(model, VisionModel)
        return ImageData(config, model.drop_paths)

    def card(self, state: SavedState) -> TaskCard:
        """Model, images and accuracies."""
        return card.card_of(state)

    def export_hf(
        self, checkpoint: Checkpoint, state: SavedState, dtype: torch.dtype, model: str | None
    ) -> Callable[[Path], None]:
        """For ``timm.create_model``."""
        return export.timm_writer(checkpoint, state.config, dtype, model)
