"""Which images an update has, and which an evaluation; read, augmented and mixed.

Image j of an epoch is the one that a permutation, of the seed and the epoch alone, has at place j. An epoch
has as many updates as are whole; the images that are left over are others in each. A group of
``task.mix_batch`` images is mixed together and is what one process makes at a time. Rank r of W takes the
groups from r G / W to (r + 1) G / W of an update's G: so all groups, and all images in them, are the same on
any number of ranks. The position in all this is one number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alphadecay_dist.errors import UserError
from alphadecay_dist.json_fields import count, get
from alphadecay_dist.training.batch_size import micro_batch
from alphadecay_dist.training.data.permutation import Permutation
from alphadecay_dist.training.fingerprint import Marks
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.tasks.data import Data, Loaders, Previous
from alphadecay_dist.training.tasks.vision.augment import Augment, Plain, Sample
from alphadecay_dist.training.tasks.vision.batches import PADDING, TrainingBatch, ValidationBatch
from alphadecay_dist.training.tasks.vision.options import VisionOptions
from alphadecay_dist.training.tasks.vision.sources import Images, Split, open_images
from alphadecay_dist.training.tasks.vision.workers import Jobs, Results

STATE = "images"


def check_groups(config: Config, world_size: int) -> None:
    """Check that each rank has whole groups of images.

    Raises:
        UserError: it has not.
    """
    share, group = config.train.global_batch // world_size, config.task.mix_batch
    if share % group:
        fits = math.gcd(share, group)
        pairs = fits % 2 == 0 or not config.task.mixes
        advice = f"--task.mix_batch={fits}" if pairs else "another train.global_batch"
        raise UserError(
            f"task.mix_batch: found {group}, expected a divisor of a rank's share of train.global_batch, "
            f"{share} on {world_size} ranks: images are mixed in groups that do not depend on the ranks; "
            f"give {advice}, or fewer ranks"
        )


@dataclass(frozen=True)
class Order:
    """Which images are trained on when.

    Attributes:
        images: their number.
        updates: of an epoch.
        global_batch: images of an update.
        seed: ``train.seed``.
    """

    images: int
    updates: int
    global_batch: int
    seed: int

    def epoch_of(self, place: int) -> tuple[int, int]:
        """The epoch of a place in the whole run, and the place in that epoch."""
        return divmod(place, self.updates * self.global_batch)

    def numbers(self, epoch: int, places: range) -> list[int]:
        """The images at places of an epoch."""
        order = Permutation(self.images, f"{self.seed} {epoch} images")
        return [order[place] for place in places]


class Groups(Jobs):
    """Groups of training images, by their number in the whole run."""

    def __init__(self, images: Images, order: Order, augment: Augment, size: int, classes: int) -> None:
        self._images, self._order, self._augment, self._size = images, order, augment, size
        self._classes = classes

    def job(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`.augment.Augment.mixed`."""
        epoch, place = self._order.epoch_of(number * self._size)
        numbers = self._order.numbers(epoch, range(place, place + self._size))
        return self._augment.mixed([self._sample(n, epoch) for n in numbers], epoch, place // self._size)

    def _sample(self, number: int, epoch: int) -> Sample:
        image, label = self._images.read(number)
        return self._augment.sample(image, _checked(label, self._classes), epoch, number)


class Validation(Jobs):
    """A rank's batches of validation images, by their number; rank r of W has images r, r + W and so on.

    Args:
        images: of all ranks.
        options: of the recipe.
        places: the images of this rank, and places beyond the last, which are padding.
        size: images of a batch.
    """

    def __init__(self, images: Images, options: VisionOptions, places: range, size: int) -> None:
        self._images, self._options, self._places, self._size = images, options, places, size
        self._plain = Plain(options)

    def job(self, number: int) -> tuple[Tensor, Tensor]:
        """Images (b, c, h, w) and labels (b,)."""
        rows = [self._row(place) for place in self._places[number * self._size : (number + 1) * self._size]]
        return torch.stack([image for image, _ in rows]), torch.tensor([label for _, label in rows])

    def _row(self, place: int) -> tuple[Tensor, int]:
        if place >= len(self._images):
            options = self._options
            return torch.zeros(options.channels, options.image_size, options.image_size), PADDING
        image, label = self._images.read(place)
        return self._plain.image(image), _checked(label, self._options.classes)


def _checked(label: int, classes: int) -> int:
    if not 0 <= label < classes:
        raise UserError(
            f"data: found the label {label}, expected 0 to {classes - 1}; give --task.classes={label + 1}"
        )
    return label


class TrainingImages:
    """The micro-batches of one rank, update by update.

    Args:
        config: the recipe.
        groups: of images.
        rank: this rank.
        world_size: number of ranks.
    """

    def __init__(self, config: Config, groups: Groups, rank: int, world_size: int) -> None:
        check_groups(config, world_size)
        self._groups, self._workers = groups, config.task.workers
        self._global_batch = config.train.global_batch
        self._share = self._global_batch // world_size
        self._micro_batch = micro_batch(config.train, world_size)
        self._group = config.task.mix_batch
        self._first = rank * self._share
        self._consumed = 0  # images of all ranks
        self._results: Iterator[Any] | None = None

    def start(self) -> TrainingImages:
        """Let the processes read ahead from the position on."""
        first = (self._consumed + self._first) // self._group
        numbers = _numbers(first, self._share // self._group, self._global_batch // self._group)
        self._results = Results(self._groups, numbers, self._workers)
        return self

    def next_update(self) -> list[TrainingBatch]:
        """This rank's micro-batches of the next update, on the CPU."""
        assert self._results is not None
        made = [next(self._results) for _ in range(self._share // self._group)]
        whole = TrainingBatch(*(torch.cat(tensors) for tensors in zip(*made, strict=True)))
        self._consumed += self._global_batch
        size = self._micro_batch
        return [whole.rows(start, start + size) for start in range(0, self._share, size)]

    def state(self) -> dict[str, dict[str, Any]]:
        """How many images were trained on; the same on every rank."""
        return {STATE: {"consumed": self._consumed}}

    def load(self, states: Mapping[str, Any]) -> None:
        """Go on after so many images."""
        self.place(states)
        self.start()

    def place(self, states: Mapping[str, Any]) -> None:
        """Set the position alone.

        Raises:
            UserError: it is that of other data.
        """
        try:
            consumed = count(get(states, STATE, dict), "consumed")
            if consumed % self._global_batch:
                raise ValueError(f"has {consumed} as consumed, expected a multiple of {self._global_batch}")
        except ValueError as error:
            raise UserError(
                f"data: the saved position {error}; give the data that the run was begun with, or another "
                "checkpoint"
            ) from None
        self._consumed = consumed


def _numbers(first: int, own: int, step: int) -> Iterator[int]:
    """Runs of ``own`` numbers that begin at ``first`` and every ``step`` after it, without end."""
    for start in itertools.count(first, step):
        yield from range(start, start + own)


class ValidationImages:
    """This rank's micro-batches of an evaluation; over all ranks each image comes once.

    Args:
        images: of all ranks.
        config: the recipe.
        ranks: this rank among the others.
    """

    def __init__(self, images: Images, config: Config, ranks: Ranks) -> None:
        self._ranks, self._workers = ranks, config.task.workers
        size, world_size = micro_batch(config.train, ranks.world_size), ranks.world_size
        self._batches = math.ceil(len(images) / (world_size * size))
        places = range(ranks.rank, self._batches * size * world_size, world_size)
        self._jobs = Validation(images, config.task, places, size)

    def __iter__(self) -> Iterator[ValidationBatch]:
        """Batches, as many on every rank; an image that a rank cannot read ends all."""
        results = Results(self._jobs, range(self._batches), self._workers)
        for _ in range(self._batches):
            with self._ranks.raise_on_all_ranks():
                images, labels = next(results)
            yield ValidationBatch(images, labels)


class ImageData(Data):
    """The images that a recipe names.

    Args:
        config: the recipe.
        paths: drop paths of the model.
    """

    def __init__(self, config: Config, paths: int) -> None:
        self._config, self._paths = config, paths
        self._split: Split = open_images(config.data)
        found, expected = self._split.classes, config.task.classes
        if found is not None and found > expected:
            raise UserError(
                f"task.classes: found {expected}, expected at least {found}: as many has data.source "
                f"{config.data.source}"
            )

    @property
    def revision(self) -> str | None:
        """The commit on the hub."""
        return self._split.revision

    def marks(self) -> dict[str, Marks]:
        """Of the files below ``data.source``; there are none of the digits, and of the hub's."""
        return {} if self._split.marks is None else {"data.source": self._split.marks()}

    def fault(self) -> str | None:
        """That there is no image, or that the first cannot be read."""
        for images in (self._split.train, self._split.validation):
            if not len(images):
                return f"data.source {self._config.data.source}: has no image"
            images.read(0)
        return None

    def loaders(self, ranks: Ranks, previous: Previous | None) -> ImageLoaders:
        """Nothing has to be made first."""
        return ImageLoaders(self._config, self._split, self._paths)


class ImageLoaders(Loaders):
    """Images that can be read by batches.

    Args:
        config: the recipe.
        split: training and validation images.
        paths: drop paths of the model.
    """

    def __init__(self, config: Config, split: Split, paths: int) -> None:
        self._config, self._split, self._paths = config, split, paths

    def training(self, rank: int, world_size: int, states: Mapping[str, Any] | None) -> TrainingImages:
        """A rank's images, from the beginning or from a checkpoint's position on."""
        train, task = self._config.train, self._config.task
        images = self._split.train
        order = Order(len(images), len(images) // train.global_batch, train.global_batch, train.seed)
        if not order.updates:
            raise UserError(
                f"data.source {self._config.data.source}: has {len(images)} training images, expected at "
                f"least train.global_batch, {train.global_batch}"
            )
        augment = Augment(task, train.seed, self._paths)
        groups = Groups(images, order, augment, task.mix_batch, task.classes)
        data = TrainingImages(self._config, groups, rank, world_size)
        if states is not None:
            data.place(states)
        return data.start()

    def evaluation(self, ranks: Ranks) -> Iterable[ValidationBatch]:
        """All validation images."""
        return ValidationImages(self._split.validation, self._config, ranks)

    def describe(self, update: Sequence[Any]) -> list[str]:
        """Images of an epoch, shape and labels of the first micro-batch."""
        train, validation = len(self._split.train), len(self._split.validation)
        first = update[0]
        return [
            f"images: {train:,} to train on ({train // self._config.train.global_batch} updates an epoch), "
            f"{validation:,} to evaluate with",
            f"first update on rank 0: {len(update)} micro-batches of {tuple(first.images.shape)}, mean "
            f"{first.images.mean():.3f}; most likely labels {first.labels.argmax(1)[:8].tolist()}",
        ]
