"""Recipes: read from YAML with dotted overrides and strict keys, checked, and written again."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from alphadecay_dist.decay.settings import PREMULTIPLY
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.training.recipe import AT_LEAST, AT_MOST, CHOICES, SIZES, WORDS, Config
from alphadecay_dist.training.units import bytes_of

DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d*)?)s?)?")
UNITS = (86400, 3600, 60, 1)
LONGEST = 1000  # characters of a text in a recipe
LARGEST = 2**63 - 1  # of a whole number


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("alphadecay_dist.recipes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_config(recipe: str, overrides: Iterable[str] = ()) -> Config:
    """Read a recipe and apply overrides.

    Args:
        recipe: a name of :func:`recipe_names`, or the path of a YAML file.
        overrides: ``section.key=value`` each, the value in YAML; a switch alone is true.

    Returns:
        The checked config.

    Raises:
        UserError: an unknown recipe, section or key (with the nearest name), a value of the wrong type or
            out of its range.
    """
    config = config_from_dict(_overridden(read_yaml(recipe), overrides, recipe))
    check(config)
    return config


def check_fields(overrides: Iterable[str]) -> None:
    """Check the names and types of overrides alone, whichever recipe they will change.

    Raises:
        UserError: as :func:`load_config` would.
    """
    config_from_dict(_overridden({}, overrides, ""))


def _overridden(tree: dict[str, Any], overrides: Iterable[str], recipe: str) -> dict[str, Any]:
    """A recipe's content with the overrides in it."""
    switches = [key for key, value in flat(Config()) if isinstance(value, bool)]
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator and key in switches:
            text = "true"
        elif not separator or key.count(".") != 1:
            raise UserError(f"{shown(override)}: expected --section.key=value, such as --train.steps=100")
        section, name = key.split(".")
        values = tree.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(
                f"recipe {recipe}: section {section} is {shown(values)}, expected keys and values"
            )
        values[name] = text if _is_text(key, text) else _parse_yaml(text, f"--{key}")
    return tree


def read_yaml(recipe: str) -> dict[str, Any]:
    """The raw content of a recipe file or of a named recipe."""
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        path = Path(recipe)
        if not os.path.isfile(path):
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
        raise UserError(f"recipe {recipe}: found {shown(tree)}, expected sections with keys and values")
    return tree


def config_from_dict(tree: Mapping[str, Any]) -> Config:
    """A config from nested dicts; keys and types are strict, most ranges are left to :func:`check`."""
    sections = typing.get_type_hints(Config)
    built = {}
    for section, values in tree.items():
        if section not in sections:
            raise UserError(f"unknown section {shown(section)}{nearest(_bare(section), sections)}")
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
        _check_plain(key, value)
    for key, choices in CHOICES.items():
        if values[key] is not None and values[key] not in choices:
            raise UserError(f"{key}: found {shown(values[key])}, expected one of {', '.join(choices)}")
    for key, least in AT_LEAST.items():
        if values[key] is not None and values[key] < least:
            raise UserError(f"{key}: found {shown(values[key])}, expected {least} or more")
    if not all(0 <= beta < 1 for beta in config.optimizer.betas):
        raise UserError(f"optimizer.betas: found {config.optimizer.betas}, expected two numbers in [0, 1)")
    if config.decay.apply == PREMULTIPLY and config.optimizer.name != "adamw":
        raise UserError(
            f"decay.apply: found {PREMULTIPLY!r} with optimizer.name {config.optimizer.name!r}, expected "
            "'adamw', whose decay is such a product; use groups or auto"
        )
    if config.checkpoint.deadline is not None:
        seconds_of(config.checkpoint.deadline, "checkpoint.deadline")
    if config.train.global_batch % config.data.lanes:
        raise UserError(
            f"data.lanes: found {config.data.lanes}, expected a divisor of "
            f"train.global_batch {config.train.global_batch}"
        )


def _check_plain(key: str, value: Any) -> None:
    """Refuse what no field takes: numbers without end, and texts that no error could quote."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}: found {value}, expected a finite number")
    if isinstance(value, str) and not (value.isprintable() and len(value) <= LONGEST):
        raise UserError(f"{key}: found {shown(value)}, expected {LONGEST} printable characters at most")
    if isinstance(value, int) and value > AT_MOST.get(key, LARGEST):
        raise UserError(f"{key}: found {shown(value)}, expected {AT_MOST.get(key, LARGEST)} or less")


def seconds_of(duration: str, key: str) -> float:
    """Seconds of ``600``, ``90m``, ``11h50m`` or ``1d2h``.

    Raises:
        UserError: no such duration; ``key`` is what it was given for.
    """
    found = DURATION.fullmatch(duration)
    if not duration or found is None:
        raise UserError(
            f"{key}: found {shown(duration)}, expected seconds, or days, hours, minutes as in 11h50m"
        )
    return sum(float(part) * unit for part, unit in zip(found.groups(default="0"), UNITS, strict=True))


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
        raise UserError(f"section {section}: found {shown(values)}, expected keys and values")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise UserError(f"unknown key {section}.{_bare(name)}{_hint(section, _bare(name), hints)}")
    given = {name: _convert(f"{section}.{name}", hints[name], value) for name, value in values.items()}
    try:
        return cls(**given)
    except UserError as error:  # a section that checks itself
        raise UserError(f"{section}.{error}") from None


def _hint(section: str, name: str, known: Iterable[str]) -> str:
    """How an error goes on after an unknown key: the same name in another section, or the nearest one."""
    if section == "model":
        return (
            "; known: name; the model's sizes are in a JSON, as in recipes/models/llama_60m.json: give yours "
            "by --model.name=PATH.json"
        )
    others = [key for key, _ in flat(Config()) if key.partition(".")[2] == name]
    return f"; did you mean {' or '.join(map(repr, others))}?" if others else nearest(name, known)


def _bare(name: Any) -> str:
    """A key without quotes."""
    return shown(name).strip("'")


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
    elif hint is str and isinstance(value, bool) and not value and "off" in WORDS.get(key, ()):
        return "off"  # YAML reads off as false
    elif hint is str and isinstance(value, bool):
        raise UserError(_no_text(key, value))
    elif hint is int and isinstance(value, str) and key in SIZES:
        return bytes_of(value, key)
    elif isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    elif hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    expected = getattr(hint, "__name__", str(hint))
    raise UserError(f"{key}: found {shown(value)}, expected {expected}")


def _no_text(key: str, value: bool) -> str:
    """The error for a word that YAML takes for true or false: on, off, yes, no, true, false."""
    words = "on, yes or true" if value else "off, no or false"
    if key in WORDS:
        expected = f"one of {', '.join(WORDS[key])}"
    else:
        expected = f"str; put the word in quotes of YAML: --{key}='\"yes\"'"
    return f"{key}: found {value} ({words} in YAML), expected {expected}"


def _is_text(key: str, text: str) -> bool:
    """Whether an option's text is taken as it is, and not as YAML: a path, or a pattern like ``*.jsonl``."""
    section, name = key.split(".")
    hints = typing.get_type_hints(typing.get_type_hints(Config).get(section, object))
    free = hints.get(name) in (str, str | None) and key not in WORDS
    return free and text not in ("", "~", "null") and text[0] not in "'\""


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-13-45 is no date
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
