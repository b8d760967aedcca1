"""Drop path whose draws come with the batch.

timm's own draws where it computes, from the device's generator: what is dropped then depends on the rank, on
how the batch is cut into micro-batches, and on everything that was drawn before. Here a sample brings its
numbers, drawn with its augmentation, so that a run does not depend on ranks, and a resume needs no state of a
device.
"""

from __future__ import annotations

from timm.layers import DropPath
from torch import Tensor, nn


class GivenDropPath(nn.Module):
    """Leaves a residual branch out for the samples that were not drawn to keep it, as timm's DropPath does.

    Args:
        drop_prob: probability that a sample's branch is left out; the kept ones are scaled up.

    Attributes:
        draws: (b,) of the batch that is computed, uniform in [0, 1), fp32; None before the first.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.draws: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(b, ...), with zeros for the samples that are left out; in evaluations as it is."""
        if not self.training:
            return x
        assert self.draws is not None
        kept = (self.draws >= self.drop_prob).to(x.dtype).view(-1, *[1] * (x.dim() - 1))
        return x * (kept / (1 - self.drop_prob))


def with_given_draws(block: nn.Module) -> nn.Module:
    """A block whose drop paths take given draws."""
    for name, module in list(block.named_modules()):
        if isinstance(module, DropPath):
            parent, _, own = name.rpartition(".")
            setattr(block.get_submodule(parent), own, GivenDropPath(module.drop_prob))
    return block


def drop_paths(model: nn.Module) -> list[GivenDropPath]:
    """The drop paths of a model in their order; each takes a column of a batch's draws."""
    return [module for module in model.modules() if isinstance(module, GivenDropPath)]


def give_draws(model: nn.Module, draws: Tensor) -> None:
    """Let a model's next forward, and its backward, drop what these draws say.

    Args:
        model: the model, or what wraps it.
        draws: (b, number of drop paths), fp32; no engine rounds them, for they are no input of the forward.
    """
    for path, column in zip(drop_paths(model), draws.unbind(1), strict=True):
        path.draws = column
