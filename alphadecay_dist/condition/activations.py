"""The inputs of matrices during one forward, kept until they are looked at, within a budget of memory.

Hooks are there only from the call that asks for a forward to the end of that forward: other updates run
without. They read, and change nothing of what is computed. Of an input, (n, d), its rows are kept: looking at
them later costs less than their Gram matrix. Where the budget has no room for all rows, of each input its
fp64 Gram matrix, (d, d), is kept if that takes less. Where that does not fit either fewer tokens are taken,
at most the same number of every input, evenly spaced. Nothing moves between ranks here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from alphadecay_dist.errors import UserError

LEAST = 64  # tokens that the budget must have room for
DOUBLE = torch.float64.itemsize
AT_ONCE = 1024  # rows that are made fp64 at once


class Kept:
    """The sum of A^T A over one input's rows, as far as this rank has seen them.

    Args:
        width: d, of the input.

    Attributes:
        width: as given.
        count: rows.
        squares: the sum of their squares, an fp64 scalar on the rows' device; 0 without rows.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.count = 0
        self.squares: Tensor | float = 0.0
        self._gram: Tensor | None = None
        self._rows: list[Tensor] = []

    @property
    def method(self) -> str:
        """What is kept: ``gram`` or ``rows``."""
        return "rows" if self._gram is None else "gram"

    @property
    def nbytes(self) -> int:
        """Memory that is taken."""
        return sum(own.nbytes for own in [*self._rows, *([] if self._gram is None else [self._gram])])

    def add(self, rows: Tensor, *, gram: bool = False) -> None:
        """Take up (n, d) rows, the first ones into a Gram matrix where that is wanted."""
        if not self.count and gram:
            self._gram = torch.zeros(self.width, self.width, dtype=torch.float64, device=rows.device)
        self.count += len(rows)
        for chunk in rows.split(AT_ONCE):
            exact = chunk.double()
            self.squares = self.squares + exact.square().sum()
            if self._gram is not None:
                self._gram.addmm_(exact.T, exact)
        if self._gram is None:
            self._rows.append(rows.clone())  # what it was taken from may be written

    def times(self, vectors: Tensor) -> Tensor:
        """A^T A times (d, k) fp64 vectors on the host."""
        if self._gram is not None:
            return (self._gram @ vectors.to(self._gram.device)).cpu()
        product = torch.zeros_like(vectors)
        for chunk in (chunk for rows in self._rows for chunk in rows.split(AT_ONCE)):
            exact = chunk.double()
            product += (exact.T @ (exact @ vectors.to(exact.device))).cpu()
        return product


class Recorder:
    """Keeps the inputs of modules, and counts tokens, during one forward in training.

    Args:
        model: whose forward is waited for, as it is called or within what is called.
        inputs: the module of each weight, by name.
        widths: of the inputs that will be kept, as far as they are known.
        embeddings: modules whose tokens are counted, by name.
        tokens: name of the one that reads the model's tokens; its padding is left out everywhere.
        most: tokens of this rank that are kept at most; None keeps all that fit.
        budget: bytes of all that is kept.

    Attributes:
        kept: what was kept, by weight; weights of one input share it.
        counts: how often each token was read, (vocabulary,), by embedding.

    Raises:
        UserError: the budget is too small.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Mapping[str, nn.Module],
        widths: Sequence[int],
        embeddings: Mapping[str, nn.Module],
        tokens: str | None,
        most: int | None,
        budget: int,
    ) -> None:
        least = _needed(widths, LEAST, torch.float32.itemsize)
        if least > budget:
            raise UserError(
                f"memory_budget: found {budget} bytes, expected {least} or more: so much {LEAST} tokens of "
                "all inputs take; give more, or fewer matrices by which=..."
            )
        self._model, self._inputs, self._widths = model, inputs, widths
        self._embeddings, self._tokens = embeddings, tokens
        self._most, self._budget = most, budget
        self._handles: list[RemovableHandle] = []
        self._last: tuple[Tensor, Kept] | None = None  # the last input, which the next module may share
        self._forget()

    @property
    def armed(self) -> bool:
        """Whether the next forward will be recorded."""
        return bool(self._handles)

    def arm(self) -> None:
        """Record the next forward in training; what was recorded before is forgotten.

        Raises:
            UserError: the model is compiled, so that hooks would not be called.
        """
        self.disarm()
        self._forget()
        _require_eager(self._model)
        hook = self._handles.append
        hook(self._model.register_forward_pre_hook(self._begin))
        hook(self._model.register_forward_hook(self._end, always_call=True))
        for name, module in self._embeddings.items():
            hook(module.register_forward_pre_hook(self._counting(name), with_kwargs=True))
        for name, module in self._inputs.items():
            hook(module.register_forward_pre_hook(self._keeping(name), with_kwargs=True))

    def disarm(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._recording = False
        self._last = None

    def take(self) -> tuple[dict[str, Kept], dict[str, Tensor]]:
        """What was recorded since :meth:`arm`, which is forgotten here: inputs by weight, and counts."""
        self.disarm()
        found = self.kept, self.counts
        self._forget()
        return found

    def _forget(self) -> None:
        self.kept: dict[str, Kept] = {}
        self.counts: dict[str, Tensor] = {}
        self._recording = False
        self._real: Tensor | None = None  # (b, s), which positions hold no padding
        self._limit: int | None = None  # rows of each input
        self._last = None

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._recording = module.training and torch.is_grad_enabled()

    def _end(self, *_: Any) -> None:
        if self._recording:
            self.disarm()

    def _counting(self, name: str) -> Callable[..., None]:
        """The hook that counts the tokens of an embedding."""

        @torch.no_grad()
        def count(module: nn.Module, args: Any, kwargs: Any) -> None:
            tokens = _first(args, kwargs)
            if not self._recording or tokens is None:
                return
            padding = getattr(module, "padding_idx", None)
            real = None if padding is None else tokens != padding
            if name == self._tokens:
                self._real = real
            own = tokens.flatten() if real is None else tokens[real]
            found = torch.bincount(own, minlength=module.num_embeddings).double()  # type: ignore[arg-type]
            self.counts[name] = self.counts.get(name, 0) + found

        return count

    def _keeping(self, name: str) -> Callable[..., None]:
        """The hook that keeps the input of one weight."""

        @torch.no_grad()
        def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
            values = _first(args, kwargs)
            if not self._recording or values is None or not values.is_floating_point():
                return
            if self._last is not None and _same(self._last[0], values):
                shared = self._last[1]
                if self.kept.setdefault(name, shared) is shared:
                    return  # one input of several matrices, kept once
            own = self.kept.setdefault(name, Kept(values.shape[-1]))
            self._last = values, own
            rows = self._thinned(self._unpadded(values.detach()))
            if own.width == rows.shape[1] and self._has_room(own, rows):
                own.add(rows, gram=self._wants_gram(own.width, rows))

        return keep

    def _unpadded(self, values: Tensor) -> Tensor:
        """The rows of an input that are no padding's, (n, d)."""
        rows, real = values.reshape(-1, values.shape[-1]), self._real
        if real is None:
            return rows
        if real.numel() == len(rows):
            return rows[real.flatten()]
        behind = real[..., 1:]  # the head of a causal model has no use for the last position
        return rows[behind.flatten()] if behind.numel() == len(rows) else rows

    def _thinned(self, rows: Tensor) -> Tensor:
        """As many rows as are wanted and fit, evenly spaced."""
        if self._limit is None:
            fit = _most_rows(self._widths, rows.itemsize, self._budget)
            self._limit = fit if self._most is None else min(fit, self._most)
        count = min(self._limit, len(rows))
        if count == len(rows):
            return rows
        return rows[torch.arange(count, device=rows.device) * len(rows) // max(count, 1)]

    def _wants_gram(self, width: int, rows: Tensor) -> bool:
        """Whether its Gram matrix takes less than these rows, where so many of all inputs do not fit."""
        all_fit = sum(self._widths) * len(rows) * rows.itemsize <= self._budget
        return not all_fit and _gram_is_less(width, len(rows), rows.itemsize)

    def _has_room(self, own: Kept, rows: Tensor) -> bool:
        """Whether these rows fit too: a module may be called more often than once."""
        if own.method == "gram":
            return True
        held = sum(kept.nbytes for kept in {id(kept): kept for kept in self.kept.values()}.values())
        gram = not own.count and self._wants_gram(own.width, rows)
        return held + (own.width**2 * DOUBLE if gram else rows.nbytes) <= self._budget


def _first(args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first argument of a forward, where it is a tensor that this rank has whole."""
    value = next(iter([*args, *kwargs.values()]), None)
    return value if isinstance(value, Tensor) and not isinstance(value, DTensor) and value.ndim else None


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same values: engines hand out views of an input."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )


def _gram_is_less(width: int, rows: int, itemsize: int) -> bool:
    return width * DOUBLE <= rows * itemsize


def _needed(widths: Sequence[int], rows: int, itemsize: int) -> int:
    """Bytes that so many rows of inputs take."""
    return sum(width * min(width * DOUBLE, rows * itemsize) for width in widths)


def _most_rows(widths: Sequence[int], itemsize: int, budget: int) -> int:
    """The most rows of which all inputs fit into the budget."""
    least, most = 1, max(widths, default=0) * DOUBLE // itemsize + 1  # of more there are Gram matrices alone
    if _needed(widths, most, itemsize) <= budget:
        return sys.maxsize
    while least < most:
        middle = (least + most + 1) // 2
        if _needed(widths, middle, itemsize) <= budget:
            least = middle
        else:
            most = middle - 1
    return least


def _require_eager(model: nn.Module) -> None:
    """Refuse a compiled model, whose hooks are not called, or would have it compiled again."""
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod"):
            raise UserError(
                "spectral condition: found a compiled model, whose inputs cannot be seen; train it without "
                "torch.compile, or sample from a run of its own"
            )
