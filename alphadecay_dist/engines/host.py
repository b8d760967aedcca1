"""What the controller asks of whatever holds the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alphadecay_dist.engines import registry
from alphadecay_dist.engines.shares import Share
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.layout import ShardSource


class Host(Protocol):
    """An engine as the controller sees it."""

    @property
    def group(self) -> dist.ProcessGroup | None:
        """Process group whose ranks hold the pieces; None in a single process."""
        ...

    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups as they are now; never kept, for a load may replace them."""
        ...

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The torch optimizers whose steps update the weights; an engine may step its own once a group."""
        ...

    def premultiply_refusal(self) -> str | None:
        """Why decays cannot be multiplied into the weights here; None where they can."""
        ...

    def updated(
        self, group: Mapping[str, Any], parameters: Sequence[nn.Parameter]
    ) -> list[tuple[int, Tensor]]:
        """What the optimizer step that is about to run changes of the tuned weights, on this rank.

        Args:
            group: the group that holds them all, as the optimizer has it at that moment.
            parameters: the model's, in the order of the group's names.

        Returns:
            Places in that order, and views of what is updated in full precision.
        """
        ...

    def updated_dtypes(self) -> set[torch.dtype]:
        """The types in which the optimizer updates the tuned weights, on this rank."""
        ...

    def updates(self) -> int | None:
        """Updates that the engine has finished; None where it does not count them."""
        ...

    def loaded(self) -> None:
        """Correct what a load of the optimizer left wrong."""
        ...

    def at_boundary(self) -> bool:
        """Whether the next engine step updates the weights."""
        ...

    def shares(self, weights: Sequence[Weight]) -> Iterator[Share]:
        """What this rank counts of the trained parameters and their gradients, before the update's step.

        Collective only where gradients are partial sums. All gradients of the update are there, averaged.
        """
        ...

    def gradients_refusal(self) -> str | None:
        """Why the gradients of an update cannot be read here; None where they can."""
        ...

    def gradient_scale(self, norm: float) -> float:
        """What the step will still multiply the gradients with, whose global norm is this."""
        ...

    def early_gradients_refusal(self) -> str | None:
        """Why gradients cannot be read where the caller says that it is a boundary; None where they can."""
        ...

    def sources(self, weights: Sequence[Weight], dtype: torch.dtype | None) -> list[ShardSource]:
        """The tuned weights as this engine stores them, exact enough for ``dtype``. Collective."""
        ...

    def gradient_sources(self, weights: Sequence[Weight]) -> list[ShardSource]:
        """The gradients of weights as this engine stores them, for one exchange. Collective.

        As for :meth:`shares` all gradients of the update are there, averaged. A weight without a gradient has
        zeros.
        """
        ...


def host_for(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    engine: Any | None,
    process_group: dist.ProcessGroup | None,
    *,
    watches: bool = False,
) -> Host:
    """The host of an engine's handle, or of plain optimizers (one process, DDP, FSDP).

    Args:
        model: as it is trained.
        optimizers: over its groups; none where it is only watched.
        engine: the handle, if there is one.
        process_group: ranks that share the work.
        watches: whether weights are only read, so that no groups are needed.

    Raises:
        UserError: an engine or a setting of it that cannot be served.
    """
    if engine is None:
        from alphadecay_dist.engines.native.host import PlainHost, WatchedHost  # noqa: PLC0415  (loads FSDP)

        return (WatchedHost if watches else PlainHost)(model, optimizers, process_group)
    found = registry.engine_of(engine)
    if found is None or found.host is None:
        raise UserError(
            f"engine: found {type(engine).__name__}, which is not one of {', '.join(registry.ENGINES)}; "
            "give the engine that trains the model"
        )
    return registry.load(found.host)(engine, **({"watches": True} if watches else {}))
