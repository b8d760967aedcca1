"""The names and shapes of weights in files, where a model of transformers holds them otherwise.

From transformers 5 on a model's experts are one stack a matrix, and files have each expert by itself; other
parts have another name. It says which, for loading and for saving; before 5 there was no difference.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

try:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
        revert_weight_conversion,
    )
except ImportError:  # before version 5
    CONVERTS = False
else:
    CONVERTS = True

LAYER = re.compile(r".*?\.\d+\.")


@dataclass(frozen=True)
class Source:
    """What a parameter is made of.

    Attributes:
        parts: names in the files; several are joined.
        patterns: which of the converter's patterns each of them has; empty where they are renamed alone.
        target: the name that the converter gives to what it makes first.
    """

    parts: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    target: str = ""


class Conversion:
    """Between a model's parameters and the tensors of its files.

    Args:
        model: a model of transformers, on any device.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known = set(model.state_dict())
        self._renamings: list[Any] = []
        self._converters: list[Any] = []
        if CONVERTS:
            transforms = get_model_conversion_mapping(model)
            self._renamings = [own for own in transforms if isinstance(own, WeightRenaming)]
            self._converters = [own for own in transforms if isinstance(own, WeightConverter)]

    def sources(self, names: Sequence[str]) -> dict[str, Source]:
        """What is made of the tensors of files, by its name; what no parameter is made of keeps its own.

        Args:
            names: of the tensors.
        """
        found: dict[str, list[tuple[str, str | None]]] = {}
        for name in sorted(names, key=_natural):  # experts by number
            target, pattern = self._renamed(name)
            found.setdefault(target, []).append((name, pattern))
        sources: dict[str, Source] = {}
        for target, pairs in found.items():
            patterns = tuple(pattern for _, pattern in pairs if pattern is not None)
            own = Source(tuple(name for name, _ in pairs), patterns, target)
            sources |= dict.fromkeys(self._made(own), own)
        return sources

    def _renamed(self, name: str) -> tuple[str, str | None]:
        """The name in the model of a file's tensor, and the pattern of what converts it."""
        if name in self._known:  # saved as it is held
            return name, None
        target, pattern = name, None
        if self._renamings or self._converters:
            target, pattern = rename_source_key(name, self._renamings, self._converters)
        inner = f"{self._model.base_model_prefix}.{target}"
        return (inner if inner in self._known else target), pattern

    def _made(self, source: Source) -> list[str]:
        """The names of all that is made of a source."""
        if not source.patterns:
            return [source.target]
        patterns = self._converter(source).target_patterns
        names = [source.target.replace(patterns[0], pattern) for pattern in patterns]
        return [name for name in names if name in self._known] or [source.target]

    def value(self, name: str, source: Source, read: Callable[[str], Tensor]) -> Tensor:
        """A parameter from the tensors of files.

        Args:
            name: of the parameter.
            source: of :meth:`sources`.
            read: gives a tensor of the files by its name, on any device.
        """
        if not source.patterns:
            return read(source.parts[0])
        converter = self._converter(source)
        for part, pattern in zip(source.parts, source.patterns, strict=True):
            converter.add_tensor(source.target, part, pattern, read(part))
        value = converter.convert(source.target, model=self._model, config=self._model.config)[name]
        return value[0] if isinstance(value, list) else value

    def _converter(self, source: Source) -> Any:
        """What makes parameters of a source; a fresh one, for it gathers."""
        own = next(each for each in self._converters if source.patterns[0] in each.source_patterns)
        return copy.deepcopy(own)

    def groups(self, names: Iterable[str]) -> list[list[str]]:
        """Parameters that have to be there together to be converted to the files' tensors: a layer's."""
        if not self._converters:
            return [[name] for name in names]
        groups: dict[str, list[str]] = {}
        for name in names:
            layer = LAYER.match(name)
            groups.setdefault(layer[0] if layer else name, []).append(name)
        return list(groups.values())

    def stored(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The files' tensors of some of :meth:`groups`."""
        if not (self._renamings or self._converters):
            return dict(weights)
        found: dict[str, Tensor] = revert_weight_conversion(self._model, dict(weights))
        return {name: tensor.contiguous().clone() for name, tensor in found.items()}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts expert 2 before expert 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
