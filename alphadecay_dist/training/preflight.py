"""What can be checked before any rank meets another: options, recipe, model, DeepSpeed JSON, files."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alphadecay_dist.engines.registry import DEEPSPEED, DEFAULT, ENGINES
from alphadecay_dist.engines.settings import RunSettings
from alphadecay_dist.engines.training import settings_for
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.coverage import require_weights
from alphadecay_dist.params.inventory import tuned_weights
from alphadecay_dist.sharding.planning import require_factors
from alphadecay_dist.training.batch_size import micro_batch
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.muon import require_muon
from alphadecay_dist.training.options import Options
from alphadecay_dist.training.outputs.trackers import require_trackers
from alphadecay_dist.training.process.environment import environment
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.tasks.registry import task_named
from alphadecay_dist.training.tasks.task import Model, Task


@dataclass(frozen=True)
class ResolvedRun:
    """What can be known before any rank meets another."""

    config: Config
    task: Task
    model: Model
    engine_config: Any  # the engine's own settings, a dict or a dataclass
    folder: Path

    @property
    def shapes(self) -> nn.Module:
        """The model without storage."""
        return self.model.shapes


def resolve(options: Options) -> ResolvedRun:
    """Check options, recipe, model and DeepSpeed JSON: the same result, or error, on every rank."""
    config = _with_engine(with_dtype(load_config(options.recipe, options.overrides)), options)
    require_trackers(config.logging)
    engine_config = _engine_config(config, options.deepspeed)
    task = task_named(config.model.task)
    model = task.model(config)
    weights = tuned_weights(model.shapes)
    require_weights(weights, model.shapes)
    require_factors(config.decay, weights)
    require_muon(config, model.shapes, engine_config)
    task.check_data(config, model)
    if options.init_from is not None:
        model.initial_values(options.init_from)
    name = Path(options.recipe).stem
    folder = Path(options.output_dir or Path("runs") / name)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"--output_dir {folder}: is a file, expected a directory")
    above = next(parent for parent in (folder, *folder.absolute().parents) if os.path.exists(parent))
    if not os.path.isdir(above) or not os.access(above, os.W_OK):
        raise UserError(
            f"--output_dir {folder}: cannot be made, {above} is no directory to write to; choose another"
        )
    return ResolvedRun(config, task, model, engine_config, folder)


def parameter_count(shapes: nn.Module) -> int:
    """Number of weights, tied ones once."""
    return sum(parameter.numel() for parameter in shapes.parameters())


def with_dtype(config: Config) -> Config:
    """The config with ``train.dtype`` resolved, as it is on this machine."""
    if config.train.dtype != "auto":
        return config
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    return dataclasses.replace(config, train=dataclasses.replace(config.train, dtype=dtype))


def _with_engine(config: Config, options: Options) -> Config:
    """The config with its engine's name resolved.

    Raises:
        UserError: --engine, --deepspeed and the recipe contradict each other.
    """
    name = options.engine or config.engine.name
    if name == "auto":
        name = DEEPSPEED if options.deepspeed else DEFAULT
    if name == DEEPSPEED and not options.deepspeed:
        raise UserError(
            f"engine.name: found {DEEPSPEED!r} without --deepspeed, expected its JSON: --deepspeed zero2"
        )
    if options.deepspeed and name != DEEPSPEED:
        raise UserError(
            f"engine.name: found {name!r} with --deepspeed {options.deepspeed}; give one of the two"
        )
    if config.engine.replicate > 1 and not ENGINES[name].replicas:
        able = " and ".join(other for other, engine in ENGINES.items() if engine.replicas)
        raise UserError(
            f"engine.replicate: found {config.engine.replicate} with the engine {name}, expected 1: "
            f"{able} alone has replicas"
        )
    return dataclasses.replace(config, engine=dataclasses.replace(config.engine, name=name))


def _engine_config(config: Config, deepspeed: str | None) -> Any:
    """The engine's own settings, filled from the recipe."""
    train, world_size = config.train, environment("WORLD_SIZE", 1)
    size = micro_batch(train, world_size)
    return settings_for(
        RunSettings(
            name=config.engine.name,
            dtype=train.dtype,
            global_batch=train.global_batch,
            micro_batch=size,
            accumulation=train.global_batch // world_size // size,
            clip=train.clip,
            replicate=config.engine.replicate,
            deepspeed=deepspeed,
        )
    )
