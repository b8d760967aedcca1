"""The fields of a recipe that are image classification's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alphadecay_dist.errors import UserError

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "random")
FREE = ("workers",)  # how images are read: a run may change it
RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        ("image_size", "classes", "patch_size", "width", "depth", "heads", "mix_batch", "workers"),
        lambda value: value >= 1,
        "1 or more",
    ),
    (("mix_prob", "switch_prob", "erase", "flip"), lambda value: 0 <= value <= 1, "a probability"),
    (("drop_path", "smoothing", "ema"), lambda value: 0 <= value < 1, "a number in [0, 1)"),
    (("mixup", "cutmix", "color_jitter"), lambda value: value >= 0, "0 or more"),
    (("scale", "ratio"), lambda value: 0 < value[0] <= value[1], "two positive numbers, the less first"),
    (("cls_std",), lambda value: value > 0, "a number above 0, or null"),
    (("crop_pct",), lambda value: 0 < value <= 1, "a number in (0, 1]"),
    (("channels",), (1, 3).__contains__, "1 or 3"),
    (("interpolation",), INTERPOLATIONS.__contains__, f"one of {', '.join(INTERPOLATIONS)}"),
)


@dataclass(frozen=True)
class VisionOptions:
    """What image classification has beside what every recipe has; the defaults are those of DeiT.

    Attributes:
        image_size: height and width that images are brought to, in pixels.
        channels: 3 (colour) or 1 (grey); images are converted.
        classes: outputs of the model; labels are 0 to classes - 1.
        patch_size: pixels of a patch's side; null, as the following three: as model.name has it.
        width: of the embedding.
        depth: number of blocks.
        heads: of each block's attention.
        cls_std: standard deviation of the initial class token; null is timm's own, nearly 0.
        drop_path: probability that the last block is left out for a sample; it grows from 0, block by block.
        mixup: alpha of mixup, the parameter of the beta distribution of its share; 0 is off.
        cutmix: alpha of CutMix; 0 is off.
        mix_prob: probability that a group of images is mixed at all.
        switch_prob: probability of CutMix, where both are on.
        mix_batch: images that are mixed with each other by one share, an even number; each rank has whole
            groups of them. The groups do not depend on the number of ranks.
        smoothing: of labels.
        auto_augment: timm's words for RandAugment or AutoAugment; null is off.
        color_jitter: of brightness, contrast and saturation; where auto_augment is on it has no effect.
        erase: probability that a rectangle of an image is replaced by noise.
        flip: probability that an image is mirrored.
        scale: smallest and largest share of an image's area that is cut out.
        ratio: smallest and largest ratio of width and height of what is cut out.
        interpolation: ``bicubic``, ``bilinear``, ``nearest`` or, in training, ``random``.
        crop_pct: in evaluations, image_size as a share of what the shorter side is first brought to.
        ema: how much of the weights' moving average stays at an update; both are evaluated. 0 is off.
        workers: processes of each rank that read and augment images.
    """

    image_size: int = 224
    channels: int = 3
    classes: int = 1000
    patch_size: int | None = None
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    cls_std: float | None = None
    drop_path: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    mix_prob: float = 1.0
    switch_prob: float = 0.5
    mix_batch: int = 32
    smoothing: float = 0.1
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.4
    erase: float = 0.25
    flip: float = 0.5
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    ema: float = 0.9999
    workers: int = 4

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: the first that is not allowed, by its name.
        """
        for names, allowed, expected in RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not allowed(value):
                    found = list(value) if isinstance(value, tuple) else value
                    raise UserError(f"{name}: found {found!r}, expected {expected}")
        if self.mixes and self.mix_batch % 2:
            raise UserError(f"mix_batch: found {self.mix_batch}, expected an even number, for pairs")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return self.mix_prob > 0 and (self.mixup > 0 or self.cutmix > 0)
