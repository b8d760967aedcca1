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
from typing import TYPE_CHECKING, Any

import yaml

from alphadecay_dist.decay.choices import GROUPS, PREMULTIPLY
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.training.optimizer_checks import check_optimizer
from alphadecay_dist.training.recipe import (
    AT_LEAST,
    AT_MOST,
    CHOICES,
    PATTERNS,
    SEVERAL,
    SIZES,
    WORDS,
    Config,
)
from alphadecay_dist.training.tasks.registry import DEFAULT, TASKS, options_of
from alphadecay_dist.training.units import bytes_of

if TYPE_CHECKING:  # it moves within importlib from release to release
    from importlib.abc import Traversable

DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d*)?)s?)?")
UNITS = (86400, 3600, 60, 1)
LONGEST = 1000  # characters of a text in a recipe
LARGEST = 2**63 - 1  # of a whole number
EXAMPLES = ("*.mlp.*", "*.v_proj")  # of patterns


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return names_in(resources.files("alphadecay_dist.recipes"), ".yaml")


def names_in(folder: Traversable, ending: str) -> list[str]:
    """Names of the files in a folder of the package that end so, without the ending."""
    return sorted(item.name.removesuffix(ending) for item in folder.iterdir() if item.name.endswith(ending))


def named_text(what: str, name: str, folder: Traversable, endings: tuple[str, ...], advice: str = "") -> str:
    """The text of a file that comes with the package, by its name, or of any other by its path.

    Args:
        what: it is, as errors begin.
        name: a path has a slash or one of the endings.
        folder: of the package.
        endings: of such files; the first is that of the package's own.
        advice: how the error about an unknown name ends.

    Raises:
        UserError: there is no such file or name, or it cannot be read.
    """
    if name.endswith(endings) or "/" in name:
        path = Path(name)
        if not os.path.isfile(path):
            raise UserError(f"{what} {name}: no such file")
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{what} {name}: cannot be read: {error}") from None
    known = names_in(folder, endings[0])
    if name not in known:
        raise UserError(f"{what} {name!r}: unknown{nearest(name, known)}{advice}")
    return (folder / f"{name}{endings[0]}").read_text(encoding="utf-8")


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
    tree = _overridden({}, overrides, "")
    if "task" not in tree.get("model", {}):
        tree.pop("task", None)  # the recipe says whose fields these are
    config_from_dict(tree)


def _overridden(tree: dict[str, Any], overrides: Iterable[str], recipe: str) -> dict[str, Any]:
    """A recipe's content with the overrides in it."""
    switches = [key for key, value in defaults().items() if isinstance(value, bool)]
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


def defaults() -> dict[str, Any]:
    """All fields of a recipe by dotted key, with their defaults; those of all tasks are among them."""
    return dict(field for name in TASKS for field in flat(Config(task=options_of(name)())))


def read_yaml(recipe: str) -> dict[str, Any]:
    """The raw content of a recipe file or of a named recipe."""
    text = named_text("recipe", recipe, resources.files("alphadecay_dist.recipes"), (".yaml", ".yml"))
    tree = _parse_yaml(text, f"recipe {recipe}")
    if not isinstance(tree, dict):
        raise UserError(f"recipe {recipe}: found {shown(tree)}, expected sections with keys and values")
    return tree


def config_from_dict(tree: Mapping[str, Any]) -> Config:
    """A config from nested dicts; keys and types are strict, most ranges are left to :func:`check`."""
    sections = _sections(tree)
    built = {"task": sections["task"]()}
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
    _check_words(values)
    for key, least in AT_LEAST.items():
        if values[key] is not None and values[key] < least:
            raise UserError(f"{key}: found {shown(values[key])}, expected {least} or more")
    _check_apply(config)
    check_optimizer(config)
    _check_telemetry(config)
    if config.checkpoint.deadline is not None:
        seconds_of(config.checkpoint.deadline, "checkpoint.deadline")
    if config.train.global_batch % config.data.lanes:
        raise UserError(
            f"data.lanes: found {config.data.lanes}, expected a divisor of "
            f"train.global_batch {config.train.global_batch}"
        )


def _check_words(values: Mapping[str, Any]) -> None:
    """Refuse words that a field does not know."""
    for key, choices in CHOICES.items():
        if values[key] is not None and values[key] not in choices:
            raise UserError(f"{key}: found {shown(values[key])}, expected one of {', '.join(choices)}")
    for key, choices in SEVERAL.items():
        for word in values[key]:
            if word not in choices:
                raise UserError(f"{key}: unknown {shown(word)}{nearest(word, choices)}, none")


def _check_apply(config: Config) -> None:
    """Refuse premultiply where it cannot be."""
    if config.decay.apply == PREMULTIPLY and config.optimizer.name == "adam":
        raise UserError(
            f"decay.apply: found {PREMULTIPLY!r} with optimizer.name {config.optimizer.name!r}, expected "
            "'adamw' or 'muon', whose decay is such a product; use groups or auto"
        )
    if config.decay.apply == PREMULTIPLY and config.decay.follow:
        raise UserError(
            f"decay.apply: found {PREMULTIPLY!r} with decay.follow {list(config.decay.follow)}, expected "
            f"{GROUPS!r}: in one group for all matrices nothing follows a single one"
        )


def _check_telemetry(config: Config) -> None:
    """Refuse a pattern that is none, and hooks that would not be called."""
    telemetry = config.telemetry
    if telemetry.which is not None:
        try:
            re.compile(telemetry.which)
        except re.error as error:
            raise UserError(
                f"telemetry.which: found {shown(telemetry.which)}, which is no regular expression: {error}"
            ) from None
    if telemetry.spectral_condition and config.train.compile:
        raise UserError(
            f"telemetry.spectral_condition: found {telemetry.spectral_condition} with train.compile, "
            "expected 0: the inputs of compiled blocks cannot be seen"
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
    tree = {
        section: {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        for section, values in as_dict(config).items()
    }
    return yaml.safe_dump(tree, sort_keys=False)


def as_dict(config: Config) -> dict[str, Any]:
    """The config as nested dicts, without the section of a task that has no fields of its own."""
    return {section: values for section, values in dataclasses.asdict(config).items() if values}


def _sections(tree: Mapping[str, Any]) -> dict[str, type]:
    """The dataclass of each section, in a recipe of that task.

    Raises:
        UserError: there is no such task.
    """
    model = tree.get("model")
    name = model.get("task", DEFAULT) if isinstance(model, dict) else DEFAULT
    if not isinstance(name, str) or name not in TASKS:
        raise UserError(f"model.task: found {shown(name)}, expected one of {', '.join(TASKS)}")
    return {**typing.get_type_hints(Config), "task": options_of(name)}


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
            "; known: name, task; the model's sizes are in a JSON, as in recipes/models/llama_60m.json: give "
            "yours by --model.name=PATH.json"
        )
    if section == "task" and not known:
        return "; the task that model.task names has no fields of its own"
    others = [key for key in defaults() if key.partition(".")[2] == name]
    return f"; did you mean {' or '.join(map(repr, others))}?" if others else nearest(name, known)


def _bare(name: Any) -> str:
    """A key without quotes."""
    return shown(name).strip("'")


def _convert(key: str, hint: Any, value: Any) -> Any:
    """A YAML value as the type that the field has."""
    if hint == tuple[str, ...]:
        return _words(key, value)
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


def _words(key: str, value: Any) -> tuple[str, ...]:
    """Several words, as a list or with commas between them; each counts once."""
    words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    if words in (None, ["none"]):
        return ()
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        one, other, *_ = SEVERAL.get(key, EXAMPLES)
        raise UserError(
            f"{key}: found {shown(value)}, expected words: [{one}, {other}], {one},{other} or none"
        )
    return tuple(dict.fromkeys(words))


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
    sections = typing.get_type_hints(Config)
    owners = [options_of(task) for task in TASKS] if section == "task" else [sections.get(section, object)]
    hints = [
        hint for owner in owners for field, hint in typing.get_type_hints(owner).items() if field == name
    ]
    free = bool(hints) and all(hint in (str, str | None) for hint in hints) and key not in WORDS
    starts = "'\"[" if key in PATTERNS else "'\""
    return (free or key in PATTERNS) and text not in ("", "~", "null") and text[0] not in starts


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-13-45 is no date
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
