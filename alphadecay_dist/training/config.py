"""Recipes: nested dataclasses, read from YAML with dotted overrides and strict keys."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from alphadecay_dist.decay import SHAPES
from alphadecay_dist.errors import UserError
from alphadecay_dist.settings import NORMALIZE, PRESETS, Settings
from alphadecay_dist.spectral import FITS, METRICS, Windows


@dataclass(frozen=True)
class ModelConfig:
    """``name``: one of recipes/models, or the path of a LLaMA config JSON."""

    name: str = "llama_demo"


@dataclass(frozen=True)
class DataConfig:
    """Where documents come from and how sequences are made of them.

    Attributes:
        source: ``demo`` (the text shipped with the package), ``c4`` (streamed from the hub), or a local
            file, directory or glob of .txt, .json, .jsonl (.gz too) or .parquet files.
        validation: held-out files, given like ``source``; without them every ``holdout``-th document of a
            local source is held out. ``demo`` and ``c4`` have a validation set of their own.
        holdout: see ``validation``.
        text_field: the column or key that holds the text.
        pack: cut the joined documents into full sequences, instead of a sequence a document, cut or padded.
        lanes: independent streams that the documents are dealt to; a divisor of the global batch. A rank
            reads only the lanes of its own sequences; the order of sequences does not depend on the ranks.
        shuffle: documents that are shuffled together.
    """

    source: str = "demo"
    validation: str | None = None
    holdout: int = 100
    text_field: str = "text"
    pack: bool = False
    lanes: int = 1
    shuffle: int = 10000


@dataclass(frozen=True)
class TokenizerConfig:
    """``model``: a sentencepiece model's path, a hub repository with a spiece.model, or ``train``."""

    model: str = "train"


@dataclass(frozen=True)
class TrainConfig:
    """The length and the size of a run.

    Attributes:
        steps: optimizer updates; schedules span them.
        stop_after: save and stop after this update; null is off.
        micro_batch: most sequences that a rank takes at once; the largest divisor that fits is used.
        global_batch: sequences an update, over all ranks.
        seq_len: tokens a sequence.
        dtype: ``bfloat16`` (compute in bf16 over fp32 masters), ``float32``, or ``auto``: bfloat16 on a GPU,
            float32 on a CPU.
        seed: of the initial weights and the order of documents.
        clip: largest global gradient norm; 0 is off.
    """

    steps: int = 100
    stop_after: int | None = None
    micro_batch: int = 8
    global_batch: int = 24
    seq_len: int = 256
    dtype: str = "auto"
    seed: int = 0
    clip: float = 0.0


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning rate.

    Attributes:
        name: ``adam`` (L2: the decay is added to the gradient) or ``adamw`` (decoupled).
        lr: peak learning rate.
        betas: decay rates of the two moments.
        eps: added to the denominator.
        warmup: updates of linear warm-up; below 1, the fraction of train.steps.
        schedule: ``cosine``, ``linear`` or ``constant`` after the warm-up.
        min_lr_ratio: the last learning rate, in peaks.
    """

    name: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup: float = 0.1
    schedule: str = "cosine"
    min_lr_ratio: float = 0.1


@dataclass(frozen=True)
class DecayConfig:
    """Weight decay.

    Attributes:
        policy: ``alphadecay``, or ``uniform`` for the base decay everywhere.
        weight_decay: the base decay.
        interval: updates between refreshes.
        min_ratio: decay of the heaviest tail, in base decays.
        max_ratio: decay of the lightest tail, in base decays.
        assign: the map from alpha to decay: ``linear`` (as published), ``sqrt``, ``log2`` or ``sigmoid``.
        normalize: ``mean`` scales the decays so that their mean over all weights is the base decay.
        metric: what is mapped: ``alpha`` (as published) or another of ``alphadecay_dist.spectral.METRICS``.
        fit: the estimator of alpha: ``hill`` (as published), ``goodness_of_fit`` or ``fix_finger``.
        xmin_pos: for ``hill``: the tail begins at eigenvalue floor(N / xmin_pos); 2 is the median.
        farms_rows: rows of FARMS' windows; null analyses whole matrices.
        farms_aspect: rows over columns of a window.
        farms_grid: windows along the rows and along the columns.
        preset: ``reference`` repeats the released code: see :class:`alphadecay_dist.AlphaDecay`; or null.
        untuned: ``base`` or ``zero``: what embeddings, norms and head get.
        memory_budget: bytes of gathered weights at once at an owner; null is two of the largest matrices
            or 256 MiB.
    """

    policy: str = "alphadecay"
    preset: str | None = None
    weight_decay: float = 0.1
    interval: int = 500
    min_ratio: float = 2 / 3
    max_ratio: float = 5.0
    assign: str = "linear"
    normalize: str = "none"
    metric: str = "alpha"
    fit: str = "hill"
    xmin_pos: float = 2.0
    farms_rows: int | None = None
    farms_aspect: float = 1.0
    farms_grid: tuple[int, int] = (1, 1)
    untuned: str = "base"
    memory_budget: int | None = None

    def windows(self) -> Windows | None:
        """FARMS' windows, if there are any."""
        if self.farms_rows is None:
            return None
        return Windows(self.farms_rows, self.farms_aspect, self.farms_grid)

    def check(self) -> None:
        """Raise a UserError for choices that do not go together."""
        try:
            Settings(
                self.weight_decay,
                self.interval,
                self.min_ratio,
                self.max_ratio,
                assign=self.assign,
                metric=self.metric,
                fit=self.fit,
                xmin_pos=self.xmin_pos,
                farms=self.windows(),
                preset=self.preset,
            )
        except ValueError as error:
            raise UserError(f"decay: {error}") from None


@dataclass(frozen=True)
class CheckpointConfig:
    """``every``: updates between checkpoints; 0 saves at the end alone."""

    every: int = 0


@dataclass(frozen=True)
class EvalConfig:
    """``every``: updates between evaluations (0: first and last alone); ``tokens``: of each evaluation."""

    every: int = 0
    tokens: int = 100_000


@dataclass(frozen=True)
class LoggingConfig:
    """``wandb``: ``auto`` (online when logged in, else offline), ``online``, ``offline`` or ``off``.

    ``every``: updates between lines sent to wandb; metrics.jsonl gets every update.
    """

    wandb: str = "auto"
    every: int = 1


@dataclass(frozen=True)
class Config:
    """A whole recipe, resolved."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    decay: DecayConfig = field(default_factory=DecayConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


CHOICES = {
    "train.dtype": ("auto", "bfloat16", "float32"),
    "optimizer.name": ("adam", "adamw"),
    "optimizer.schedule": ("cosine", "linear", "constant"),
    "decay.policy": ("alphadecay", "uniform"),
    "decay.assign": tuple(SHAPES),
    "decay.normalize": NORMALIZE,
    "decay.preset": PRESETS,
    "decay.metric": METRICS,
    "decay.fit": tuple(FITS),
    "decay.untuned": ("base", "zero"),
    "logging.wandb": ("auto", "online", "offline", "off"),
}
AT_LEAST = {
    "data.holdout": 2,
    "data.lanes": 1,
    "data.shuffle": 1,
    "train.steps": 1,
    "train.stop_after": 1,
    "train.micro_batch": 1,
    "train.global_batch": 1,
    "train.seq_len": 2,
    "train.clip": 0,
    "train.seed": 0,
    "optimizer.lr": 0,
    "optimizer.eps": 0,
    "optimizer.warmup": 0,
    "optimizer.min_lr_ratio": 0,
    "decay.weight_decay": 0,
    "decay.interval": 1,
    "decay.min_ratio": 0,
    "decay.memory_budget": 1,
    "checkpoint.every": 0,
    "eval.every": 0,
    "eval.tokens": 1,
    "logging.every": 1,
}


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("alphadecay_dist.recipes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_config(recipe: str, overrides: Iterable[str] = ()) -> Config:
    """Read a recipe and apply overrides.

    Args:
        recipe: a name of :func:`recipe_names`, or the path of a YAML file.
        overrides: ``section.key=value`` each, the value in YAML.

    Returns:
        The checked config.

    Raises:
        UserError: an unknown recipe, section or key (with the nearest name), a value of the wrong type or
            out of its range.
    """
    tree = read_yaml(recipe)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or key.count(".") != 1:
            raise UserError(f"{override!r}: expected --section.key=value, such as --train.steps=100")
        section, name = key.split(".")
        values = tree.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"recipe {recipe}: section {section} is {values!r}, expected keys and values")
        values[name] = _parse_yaml(text, f"--{key}")
    config = config_from_dict(tree)
    check(config)
    return config


def read_yaml(recipe: str) -> dict[str, Any]:
    """The raw content of a recipe file or of a named recipe."""
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        path = Path(recipe)
        if not path.is_file():
            raise UserError(f"recipe {recipe}: no such file")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"recipe {recipe}: cannot be read: {error}") from None
    elif recipe in recipe_names():
        text = (resources.files("alphadecay_dist.recipes") / f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        raise UserError(f"recipe {recipe!r}: unknown{nearest(recipe, recipe_names())}")
    tree = _parse_yaml(text, f"recipe {recipe}")
    if not isinstance(tree, dict):
        raise UserError(f"recipe {recipe}: found {tree!r}, expected sections with keys and values")
    return tree


def config_from_dict(tree: Mapping[str, Any]) -> Config:
    """A config from nested dicts; keys and types are strict, ranges are left to :func:`check`."""
    sections = typing.get_type_hints(Config)
    built = {}
    for section, values in tree.items():
        if section not in sections:
            raise UserError(f"unknown section {section!r}{nearest(str(section), sections)}")
        built[section] = _section(section, sections[section], values)
    return Config(**built)


def nearest(name: str, known: Iterable[str]) -> str:
    """How an error goes on after an unknown name: the nearest known one, and all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} known: {', '.join(names)}"


def check(config: Config) -> None:
    """Check values that types cannot.

    Raises:
        UserError: the first value that is not allowed.
    """
    values = dict(flat(config))
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}: found {value}, expected a finite number")
    for key, choices in CHOICES.items():
        if values[key] is not None and values[key] not in choices:
            raise UserError(f"{key}: found {values[key]!r}, expected one of {', '.join(choices)}")
    for key, least in AT_LEAST.items():
        if values[key] is not None and values[key] < least:
            raise UserError(f"{key}: found {values[key]}, expected {least} or more")
    if config.decay.min_ratio > config.decay.max_ratio:
        raise UserError(
            f"decay.min_ratio: found {config.decay.min_ratio}, above decay.max_ratio "
            f"{config.decay.max_ratio}; expected min_ratio <= max_ratio"
        )
    config.decay.check()
    if not all(0 <= beta < 1 for beta in config.optimizer.betas):
        raise UserError(f"optimizer.betas: found {config.optimizer.betas}, expected two numbers in [0, 1)")
    if config.train.global_batch % config.data.lanes:
        raise UserError(
            f"data.lanes: found {config.data.lanes}, expected a divisor of "
            f"train.global_batch {config.train.global_batch}"
        )


def flat(config: Config) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a config."""
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        for option in dataclasses.fields(values):
            yield f"{section.name}.{option.name}", getattr(values, option.name)


def to_yaml(config: Config) -> str:
    """The config as a recipe that gives the same config again."""
    tree = dataclasses.asdict(config)
    tree["optimizer"]["betas"] = list(config.optimizer.betas)
    tree["decay"]["farms_grid"] = list(config.decay.farms_grid)
    return yaml.safe_dump(tree, sort_keys=False)


def _section(section: str, cls: type, values: Any) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"section {section}: found {values!r}, expected keys and values")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise UserError(f"unknown key {section}.{name}{nearest(str(name), hints)}")
    return cls(**{name: _convert(f"{section}.{name}", hints[name], value) for name, value in values.items()})


def _convert(key: str, hint: Any, value: Any) -> Any:
    """A YAML value as the type that the field has."""
    if isinstance(hint, types.UnionType):  # X | None is the only union here
        return None if value is None else _convert(key, typing.get_args(hint)[0], value)
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        if isinstance(value, list | tuple) and len(value) == len(kinds):
            return tuple(_convert(key, kind, item) for kind, item in zip(kinds, value, strict=True))
    elif hint is float and not isinstance(value, bool):
        try:  # YAML reads 1e-3 as a string
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    elif hint is str and isinstance(value, bool) and not value and "off" in CHOICES.get(key, ()):
        return "off"  # YAML reads off as false
    elif isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    elif hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    expected = getattr(hint, "__name__", str(hint))
    raise UserError(f"{key}: found {value!r}, expected {expected}")


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-13-45 is no date
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
