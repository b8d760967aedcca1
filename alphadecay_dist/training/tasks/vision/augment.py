"""Images -> what the model learns from: cut out, augmented, mixed; drawn by sample and epoch alone.

The libraries draw from Python's, numpy's and torch's own generators. Before each sample, and before each
group is mixed, all three are set from the seed, the epoch and the sample's or group's number. That is done in
processes which do nothing else: a thread of the training process would share its generators with the
training.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup, create_transform
from timm.data.mixup import mixup_target
from torch import Tensor

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.tasks.vision.options import VisionOptions

MODES = {1: "L", 3: "RGB"}
GREY = (0.5,)  # mean and standard deviation of grey images


def normalization(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel: ImageNet's for colour, 0.5 for grey."""
    return (GREY, GREY) if channels == 1 else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def draw_from(*place: object) -> None:
    """Set the generators of Python, numpy and torch by a place, such as seed, epoch and number."""
    digest = hashlib.blake2b(" ".join(map(str, place)).encode(), digest_size=24).digest()
    random.seed(digest[:8])
    np.random.seed(np.frombuffer(digest[8:16], np.uint32))
    torch.default_generator.manual_seed(int.from_bytes(digest[16:], "little") >> 1)


@dataclass(frozen=True)
class Sample:
    """A training image (c, h, w) fp32 with its label, and ``draws`` (k,) for the model's drop paths."""

    image: Tensor
    label: int
    draws: Tensor


class Augment:
    """What is done to training images.

    Args:
        options: of the recipe.
        seed: ``train.seed``.
        paths: drop paths of the model, each of which needs a number of each sample.
    """

    def __init__(self, options: VisionOptions, seed: int, paths: int) -> None:
        self._options, self._seed, self._paths = options, seed, paths
        mean, std = normalization(options.channels)
        self._transform = create_transform(
            input_size=(options.channels, options.image_size, options.image_size),
            is_training=True,
            scale=options.scale,
            ratio=options.ratio,
            hflip=options.flip,
            color_jitter=options.color_jitter or None,
            auto_augment=options.auto_augment,
            interpolation=options.interpolation,
            mean=mean,
            std=std,
            re_prob=options.erase,
            re_mode="pixel",
        )
        self._mixup = Mixup(
            mixup_alpha=options.mixup,
            cutmix_alpha=options.cutmix,
            prob=options.mix_prob,
            switch_prob=options.switch_prob,
            label_smoothing=options.smoothing,
            num_classes=options.classes,
        )

    def sample(self, image: Image.Image, label: int, epoch: int, number: int) -> Sample:
        """One image, as it is in an epoch."""
        draw_from(self._seed, epoch, "sample", number)
        draws = torch.rand(self._paths)
        return Sample(self._transform(image.convert(MODES[self._options.channels])), label, draws)

    def mixed(self, samples: list[Sample], epoch: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
        """A group of images, mixed with each other.

        Args:
            samples: of the group, in their order.
            epoch: it belongs to.
            group: its number in the epoch.

        Returns:
            Images (m, c, h, w), soft targets (m, classes) and draws (m, k), fp32.
        """
        images = torch.stack([sample.image for sample in samples])
        labels = torch.tensor([sample.label for sample in samples])
        draws = torch.stack([sample.draws for sample in samples])
        if self._options.mixes:
            draw_from(self._seed, epoch, "group", group)
            images, targets = self._mixup(images, labels)
        else:
            targets = mixup_target(labels, self._options.classes, smoothing=self._options.smoothing)
        return images, targets, draws


class Plain:
    """What is done to validation images: resized, and the middle cut out.

    Args:
        options: of the recipe.
    """

    def __init__(self, options: VisionOptions) -> None:
        self._mode = MODES[options.channels]
        mean, std = normalization(options.channels)
        self._transform = create_transform(
            input_size=(options.channels, options.image_size, options.image_size),
            is_training=False,
            interpolation="bilinear" if options.interpolation == "random" else options.interpolation,
            crop_pct=options.crop_pct,
            mean=mean,
            std=std,
        )

    def image(self, image: Image.Image) -> Tensor:
        """(c, h, w), fp32."""
        return self._transform(image.convert(self._mode))


def check_augmentation(options: VisionOptions) -> None:
    """Check what timm alone can.

    Raises:
        UserError: words of ``auto_augment`` that it does not know.
    """
    try:
        Augment(options, 0, 0)
    except Exception as error:  # timm asserts, and looks things up
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"task.auto_augment: found {options.auto_augment!r}, which timm refuses: {reason}; expected such "
            "as 'rand-m9-mstd0.5-inc1', or null"
        ) from None
