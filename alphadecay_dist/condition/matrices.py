"""Which weights are looked at, what each is in its model, and whose input it multiplies."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from alphadecay_dist.control.module_types import modules_by_type
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.params.entries import entries
from alphadecay_dist.params.heads import OUT, QKV_IN_ONE, K, Q, V, attention_of, attentions, role_of
from alphadecay_dist.params.inventory import Weight, all_weights, tuned_weights
from alphadecay_dist.params.tuned_rule import CONV1D, CONV2D, EMBEDDING, HEAD, reason_by_name
from alphadecay_dist.params.wrappers import named_modules

EMBED, OUTPUT = "embed", "head"  # types of matrices that are in no block
GATED = ("gate_proj", "up_proj", "w1", "w3")  # of one input, in most models
NORMALISED = (Q, K, V, QKV_IN_ONE)  # what reads the normalised input of an attention


@dataclass(frozen=True)
class Part:
    """A matrix with a row of its own: a weight, or a part of a fused one or of a stack.

    Attributes:
        name: its own.
        weight: name of the weight that it lies in.
        shape: (m, n), or a Conv2d's.
        type: ``q``, ``k``, ``v``, ``o``, ``gate``, ``up``, ``down``, ``embed``, ``head``, or the last part of
            its name.
        role: in its attention, as in :mod:`alphadecay_dist.params.heads`; None outside of one.
        axis: along which heads lie in it; None where there are none.
    """

    name: str
    weight: str
    shape: tuple[int, ...]
    type: str
    role: str | None
    axis: int | None


class Matrices:
    """The matrices of a model that are looked at.

    Args:
        model: as it is trained.
        which: regular expression that finds something in their names; None takes all tuned weights, the head
            and the embeddings.
        parts: explicit sizes of fused weights, see :func:`alphadecay_dist.params.inventory.all_weights`.

    Attributes:
        weights: in the model's order, embeddings last.
        parts: by name, in the order of the weights.
        embeddings: names of those weights that are embeddings, and their modules.
        tied: the embeddings that are the weight of another module too.
        tokens: name of the embedding that reads tokens; None where the model has none.

    Raises:
        UserError: ``which`` is no regular expression, or finds nothing.
    """

    def __init__(
        self, model: nn.Module, which: str | None, parts: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        self._model, self._modules = model, named_modules(model)
        found = list(entries(model, self._modules))
        self._kinds = {entry.name: entry.kind for entry in found}
        tables = [
            Weight(entry.name, entry.shape, None, entry.parameter)
            for entry in found
            if entry.kind == EMBEDDING and isinstance(self._modules.get(entry.name), nn.Embedding)
        ]
        self.weights = _chosen(model, which, parts, tables)
        chosen = {weight.name for weight in self.weights}
        self.embeddings = {
            name: module for name, module in self._modules.items() if isinstance(module, nn.Embedding)
        }
        self.tokens = self._tokens()
        linear = {id(m.weight) for m in self._modules.values() if isinstance(m, nn.Linear)}
        self.tied = {table.name for table in tables if id(table.parameter) in linear} & chosen
        self.parts = {part.name: part for part in self._parts()}

    def inputs(self) -> dict[str, nn.Module]:
        """The module whose input each weight multiplies, where it is called with that.

        Embeddings have tokens; what a convolution multiplies is nowhere as a tensor; and what reaches one
        expert of a stack only the stack's own forward knows.
        """
        found = {}
        for weight in self.weights:
            if weight.name in self.embeddings or len(weight.shape) != 2:
                continue
            module = self._modules.get(weight.name)
            holder = self._modules.get(weight.name.rpartition(".")[0])
            if module is None and isinstance(holder, nn.MultiheadAttention):
                module = holder  # has q, k and v in a parameter of its own
            if module is not None and self._kinds[weight.name] != CONV2D:
                found[weight.name] = module
        return found

    def widths(self) -> list[int]:
        """The width of each input; matrices share one as far as their names tell."""
        inputs = {}
        for weight in self.weights:
            if weight.name not in self.embeddings and len(weight.shape) == 2:
                width = weight.shape[0 if self._kinds[weight.name] == CONV1D else 1]
                inputs[_place_of_input(weight.name)] = width
        return list(inputs.values())

    def normalised_input_of(self, part: Part) -> str | None:
        """For an attention's output matrix the weight that reads the attention's own input."""
        if part.role != OUT:
            return None
        place = attention_of(part.weight)
        own = (weight.name for weight in self.weights if attention_of(weight.name) == place)
        return next((name for name in own if role_of(name) in NORMALISED), None)

    def blocks(self, heads: int) -> dict[str, tuple[int, int]]:
        """Into how many heads along which axis the parts of attentions are divided, by name.

        Args:
            heads: of the queries, and of the output's columns. Keys and values may have fewer, as the config
                or the width of a head tells.
        """
        known = attentions(self._model)
        widths = {
            attention_of(part.weight): part.shape[part.axis] // heads
            for part in self.parts.values()
            if heads and part.role == Q and part.axis is not None and part.shape[part.axis] % heads == 0
        }
        found = {}
        for name, part in self.parts.items():
            if not heads or part.axis is None:
                continue
            count, length = heads, part.shape[part.axis]
            if part.role in (K, V):
                told, width = known(part.weight), widths.get(attention_of(part.weight), 0)
                count = told.keys if told is not None and told.queries == heads else 0
                count = count or (length // width if width and length % width == 0 else heads)
            if length % count == 0:
                found[name] = count, part.axis
        return found

    def _parts(self) -> Iterable[Part]:
        names = [
            (weight, part, tuple(shape))
            for weight in self.weights
            for unit in weight.units()
            for part, shape in zip(weight.parts(unit), weight.part_shapes(), strict=True)
        ]
        types = _types([part for _, part, _ in names])
        for weight, part, shape in names:
            role = _role(weight, part)
            kind = OUTPUT if reason_by_name(weight.name) == HEAD else types[part]
            kind = EMBED if weight.name == self.tokens else kind
            yield Part(part, weight.name, shape, kind, role, self._axis(weight.name, role))

    def _axis(self, weight: str, role: str | None) -> int | None:
        """Along which axis heads lie: outputs of q, k and v, inputs of o."""
        outputs = int(self._kinds[weight] == CONV1D)
        if role in (Q, K, V):
            return outputs
        return 1 - outputs if role == OUT else None

    def _tokens(self) -> str | None:
        """The embedding that the model says is that of its input, else its first."""
        told = getattr(self._modules[""], "get_input_embeddings", lambda: None)
        try:
            own = told()
        except NotImplementedError:  # transformers' own, where a model has none
            own = None
        names = [name for name, module in self.embeddings.items() if module is own]
        return next(iter([*names, *self.embeddings]), None)


def _chosen(
    model: nn.Module, which: str | None, parts: Mapping[str, Sequence[int]] | None, tables: list[Weight]
) -> list[Weight]:
    """The weights that are asked for."""
    known = [*all_weights(model, parts), *tables]
    if which is None:
        tuned = {weight.name for weight in tuned_weights(model, parts=parts)}
        tuned |= {table.name for table in tables}
        found = [own for own in known if own.name in tuned or reason_by_name(own.name) == HEAD]
    else:
        pattern = require_pattern(which, "which")
        found = [own for own in known if pattern.search(own.name)]
    if not found:
        some = ", ".join(weight.name for weight in known[:3]) or "none"
        raise UserError(
            f"which: {shown(which)} finds none of the {len(known)} matrices of the model (such as {some}); "
            "give a regular expression over their names"
        )
    return found


def require_pattern(which: str, key: str) -> re.Pattern[str]:
    """A regular expression.

    Raises:
        UserError: it is none; ``key`` is what the error calls it.
    """
    try:
        return re.compile(which)
    except re.error as error:
        raise UserError(
            f"{key}: found {shown(which)}, which is no regular expression: {error}; such as 'q_proj|k_proj'"
        ) from None


def _place_of_input(name: str) -> tuple[str, str]:
    """Where a weight's input is: q, k and v have one, and so have gate and up; others have their own."""
    outer, _, last = name.rpartition(".")
    if role_of(name) in NORMALISED:
        return attention_of(name), "normalised"
    return outer, "gated" if last in GATED else last


def _types(parts: Sequence[str]) -> dict[str, str]:
    """The type of each part; an expert's number is no type."""
    named: dict[str, list[str]] = {}
    for part in parts:
        words = part.split(".")
        while len(words) > 1 and words[-1].isdigit():
            words.pop()
        named.setdefault(".".join(words), []).append(part)
    return {
        part: kind for kind, own in modules_by_type(named).items() for name in own for part in named[name]
    }


def _role(weight: Weight, part: str) -> str | None:
    role = role_of(weight.name)
    if role == QKV_IN_ONE and weight.cut is not None:
        return part.rpartition(".")[2]
    return role


def rank_of(shape: Sequence[int]) -> int:
    """The largest rank of a matrix of that shape; a convolution's is that of (out, in * h * w)."""
    return min(shape[0], math.prod(shape[1:]))
