"""Which images are read when, and what is drawn for them."""

from __future__ import annotations

import random

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from PIL import Image
from timm.data import Mixup

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.recipe import DataConfig
from alphadecay_dist.training.tasks.vision.augment import Augment, Plain, check_augmentation, draw_from
from alphadecay_dist.training.tasks.vision.data import Groups, ImageData, Order, check_groups
from alphadecay_dist.training.tasks.vision.hub import open_hub, split_of
from alphadecay_dist.training.tasks.vision.options import VisionOptions
from alphadecay_dist.training.tasks.vision.sources import ArrayImages, check_source, open_images
from tests.multirank import run_ranks
from tests.training.tasks.vision.runs import options_of, write_idx


def config_of(source, **changes):
    return load_config("demo", [option.removeprefix("--") for option in options_of(source, **changes)])


def test_an_epoch_has_each_image_once_and_leaves_out_others_in_each():
    order = Order(images=60, updates=2, global_batch=24, seed=3)
    epochs = [order.numbers(epoch, range(48)) for epoch in range(4)]
    assert all(len(set(numbers)) == 48 for numbers in epochs)
    assert len({frozenset(numbers) for numbers in epochs}) == 4
    assert order.epoch_of(48) == (1, 0)
    assert order.epoch_of(47) == (0, 47)
    assert order.numbers(1, range(4, 8)) == epochs[1][4:8]
    assert Order(60, 2, 24, seed=4).numbers(0, range(48)) != epochs[0]


@pytest.fixture(scope="module")
def images():
    drawn = np.random.default_rng(0).integers(0, 256, (60, 12, 12)).astype(np.uint8)
    return ArrayImages(drawn, np.arange(60) % 10)


def groups_of(images, seed=0, size=4, **changes):
    options = VisionOptions(image_size=16, channels=1, classes=10, mix_batch=size, **changes)
    return Groups(images, Order(60, 2, 24, seed), Augment(options, seed, 3), size, 10)


def test_a_group_is_what_its_number_the_seed_and_the_epoch_say(images):
    first = groups_of(images).job(7)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    others = groups_of(images)
    others.job(2)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, others.job(7), strict=True))
    assert [tuple(tensor.shape) for tensor in first] == [(4, 1, 16, 16), (4, 10), (4, 3)]
    torch.testing.assert_close(first[1].sum(1), torch.ones(4))
    assert not torch.equal(first[0], groups_of(images, seed=1).job(7)[0])


def test_a_sample_is_augmented_alike_wherever_it_stands_in_an_epoch_and_anew_in_the_next(images):
    augment = Augment(VisionOptions(image_size=16, channels=1, classes=10), 0, 3)
    image, label = images.read(5)
    one, again, later = (augment.sample(image, label, epoch, 5) for epoch in (2, 2, 3))
    assert torch.equal(one.image, again.image)
    assert torch.equal(one.draws, again.draws)
    assert not torch.equal(one.image, later.image)
    assert not torch.equal(one.draws, later.draws)


def test_groups_are_mixed_by_timm(images):
    augment = Augment(VisionOptions(image_size=16, channels=1, classes=10), 0, 0)
    samples = [augment.sample(*images.read(n), 0, n) for n in range(4)]
    mixed, targets, _ = augment.mixed(samples, 0, 9)
    draw_from(0, 0, "group", 9)
    plain = torch.stack([sample.image for sample in samples])
    labels = torch.tensor([sample.label for sample in samples])
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10)
    expected = mixup(plain.clone(), labels)
    assert torch.equal(mixed, expected[0])
    assert torch.equal(targets, expected[1])
    assert not torch.equal(mixed, plain)
    off = Augment(VisionOptions(image_size=16, channels=1, classes=10, mix_prob=0, smoothing=0.2), 0, 0)
    same, smooth, _ = off.mixed(samples, 0, 9)
    assert torch.equal(same, plain)
    assert smooth[2].max() == pytest.approx(0.82)


def test_evaluations_resize_and_cut_out_the_middle():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8))
    found = Plain(VisionOptions()).image(picture)
    resized = picture.resize((341, 256), Image.Resampling.BICUBIC).crop((58, 16, 282, 240))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255 - mean[:, None, None]) / std[
        :, None, None
    ]
    assert found.shape == (3, 224, 224)
    assert float((found - expected).abs().mean()) < 0.01


def labels_of(config):
    ranks = Ranks(torch.device("cpu"))
    batches = list(ImageData(config, 0).loaders(ranks, None).evaluation(ranks))
    return len(batches), torch.cat([batch.labels for batch in batches]).tolist()


@pytest.mark.parametrize(
    ("ranks", "changes", "words"),
    [
        (
            4,
            {"task__mix_batch": 4},
            "a divisor of .* 6 on 4 ranks: .*; give --task.mix_batch=2, or fewer ranks",
        ),
        (8, {"task__mix_batch": 2}, "3 on 8 ranks: .*; give another train.global_batch, or fewer ranks"),
        (8, {"task__mix_batch": 2, "task__mix_prob": 0}, "3 on 8 ranks: .*; give --task.mix_batch=1, or"),
    ],
)
def test_ranks_have_whole_groups(ranks, changes, words):
    with pytest.raises(UserError, match=words):
        check_groups(config_of("digits", **changes), ranks)


@pytest.mark.ranks
def test_each_validation_image_comes_once_over_ranks(tmp_path):
    config = config_of(write_idx(tmp_path / "idx"), train__micro_batch=4)
    (batches, first), (as_many, second) = run_ranks(labels_of, 2, config)
    assert batches == as_many == 3
    in_turn = [label for pair in zip(first, second, strict=True) for label in pair]
    assert in_turn == [*(n % 10 for n in range(22)), -1, -1]


def pictures(folder, count=3):
    for split in ("train", "val"):
        for number, name in enumerate(("ant", "bee")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                picture = Image.new("RGB", (20, 16), (100 * number, 10 * i, 0))
                picture.save(folder / split / name / f"{i}.png")
    return folder


def test_a_folder_of_pictures(tmp_path):
    split = open_images(DataConfig(source=str(pictures(tmp_path / "p"))))
    assert (len(split.train), len(split.validation), split.classes) == (6, 6, 2)
    picture, label = split.train.read(4)
    assert (label, picture.getpixel((0, 0))) == (1, (100, 10, 0))
    marks = split.marks()
    assert len(marks) == 12
    assert "train/ant/0.png" in marks
    (tmp_path / "p" / "train" / "bee" / "1.png").write_bytes(b"not a picture")
    assert {name for name, mark in split.marks().items() if mark != marks[name]} == {"train/bee/1.png"}
    with pytest.raises(UserError, match=r"train/bee/1.png: cannot be read as an image: cannot identify"):
        split.train.read(4)


def test_hidden_files_and_folders_are_no_pictures(tmp_path):
    folder = pictures(tmp_path / ".p")
    expected = open_images(DataConfig(source=str(folder)))
    train = folder / "train"
    (train / "ant" / "._0.png").write_bytes(b"what macOS keeps beside a file")
    for hidden in (train / ".ipynb_checkpoints", train / "bee" / ".ipynb_checkpoints"):
        hidden.mkdir()
        Image.new("RGB", (20, 16)).save(hidden / "0-checkpoint.png")
    found = open_images(DataConfig(source=str(folder)))
    assert found.train == expected.train
    assert found.classes == 2


def test_folders_that_do_not_fit(tmp_path):
    folder = pictures(tmp_path / "p")
    (folder / "train" / "cow").mkdir()
    with pytest.raises(UserError, match=r"p: the class 'cow' is in one of train and validation alone"):
        open_images(DataConfig(source=str(folder)))
    (folder / "val" / "cow").mkdir()
    with pytest.raises(UserError, match=r"p/train: the class 'cow' has no image, expected files such as "):
        open_images(DataConfig(source=str(folder)))
    (folder / "val").rename(folder / "flat")
    (folder / "val").mkdir()
    with pytest.raises(UserError, match=r"p/val: has no folder, expected one for each class"):
        open_images(DataConfig(source=str(folder)))
    (folder / "val").rmdir()
    with pytest.raises(UserError, match=r"p: has neither idx files, parquet files nor a folder val or "):
        open_images(DataConfig(source=str(folder)))


def test_a_picture_that_is_too_large_is_named(tmp_path, monkeypatch):
    split = open_images(DataConfig(source=str(pictures(tmp_path / "p"))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # PIL refuses what has twice as many
    with pytest.raises(UserError, match=r"train/ant/0.png: cannot be read as an image: Image size"):
        split.train.read(0)


def test_of_many_pictures_all_names_count_and_the_content_of_some(tmp_path, monkeypatch):
    monkeypatch.setattr("alphadecay_dist.training.tasks.vision.sources.MARKED", 2)
    folder = pictures(tmp_path / "p")
    marks = open_images(DataConfig(source=str(folder))).marks()
    assert {"train/", "val/", "train/ant/0.png"} < marks.keys()
    assert len(marks) == 2 + 2 * 2
    (folder / "train" / "ant" / "1.png").rename(folder / "train" / "ant" / "1x.png")
    found = open_images(DataConfig(source=str(folder))).marks()
    assert [name for name in marks if marks[name] != found.get(name)] == ["train/"]


def test_the_digits_come_with_scikit_learn():
    split = open_images(DataConfig(source="digits"))
    assert (len(split.train), len(split.validation), split.classes, split.marks) == (1438, 359, 10, None)
    assert split.train.read(0)[0].size == (8, 8)


def test_a_dataset_with_images_and_labels():
    rows = Dataset.from_dict({"image": [Image.new("L", (4, 4), 7)] * 3, "label": [0, 1, 2]})
    split = split_of(DatasetDict(train=rows, validation=rows), "some/images")
    assert len(split.train) == 3
    assert split.validation.read(2)[1] == 2
    assert split.classes is None
    with pytest.raises(UserError, match="has the splits train, expected train and validation"):
        split_of(DatasetDict(train=rows), "some/images")
    with pytest.raises(UserError, match="has the columns label, expected image and label"):
        split_of(DatasetDict(train=rows.remove_columns("image"), test=rows), "some/images")


def test_a_dataset_of_the_hub_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "downloaded"
    (folder / "data").mkdir(parents=True)
    kinds = Features({"image": datasets.Image(), "label": ClassLabel(names=["ant", "bee", "cow"])})
    for split, count in (("train", 5), ("validation", 2), ("test", 1)):
        rows = {
            "image": [Image.new("L", (4, 4), n) for n in range(count)],
            "label": [n % 3 for n in range(count)],
        }
        Dataset.from_dict(rows, kinds).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    split = open_images(DataConfig(source=str(folder)))
    assert (len(split.train), len(split.validation), split.classes, split.revision) == (5, 2, 3, None)
    picture, label = split.train.read(4)
    assert (picture.getpixel((0, 0)), label) == (4, 1)
    names = {f"data/{name}-00000-of-00001.parquet" for name in ("train", "validation", "test")}
    assert split.marks().keys() == names
    (folder / "data" / "test-00000-of-00001.parquet").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"downloaded: its parquet files cannot be read: "):
        open_images(DataConfig(source=str(folder)))


def test_without_network_the_hub_is_one_line(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"data.source imagenet-1k: the hub does not give it: .*--data.source=PATH"
    ):
        open_hub("imagenet-1k", None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"source": "/no/such"}, "no such directory; give one with idx files"),
        ({"source": "digits", "validation": "x"}, "images for validation are in data.source"),
    ],
)
def test_sources_that_cannot_be(data, words):
    with pytest.raises(UserError, match=words):
        check_source(DataConfig(**data))


def test_words_that_timm_does_not_know():
    check_augmentation(VisionOptions())
    check_augmentation(VisionOptions(auto_augment=None))
    with pytest.raises(UserError, match=r"task.auto_augment: found 'rand-x9', which timm refuses"):
        check_augmentation(VisionOptions(auto_augment="rand-x9"))


def test_idx_files_that_do_not_fit(tmp_path):
    folder = write_idx(tmp_path / "idx")
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte: cannot be read: "):
        open_images(DataConfig(source=str(folder)))
    path.unlink()
    with pytest.raises(UserError, match=r"has no train-images-idx3-ubyte or train-images-idx3-ubyte.gz"):
        open_images(DataConfig(source=str(folder)))
