"""What has no spectrum of its own and shares the param group of a tuned weight, as in the released code."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import nn

from alphadecay_dist.params.choices import BATCHNORM, BIAS, LAYERNORM


def following(
    weights: Iterable[str], modules: Mapping[str, nn.Module], follow: Collection[str]
) -> dict[str, list[nn.Parameter]]:
    """The trained parameters that share each tuned weight's group.

    Args:
        weights: names of the tuned ones.
        modules: of the model, by name, in its order.
        follow: some of ``params.choices.FOLLOWERS``.
    """
    norms = _norms_after(modules) if LAYERNORM in follow else {}
    found = {}
    for weight in weights:
        own: list[nn.Parameter | None] = []
        if BIAS in follow:
            bias = getattr(modules.get(weight), "bias", None)
            own.append(bias if isinstance(bias, nn.Parameter) else None)
        norm = modules.get(weight.replace("conv", "bn"))
        if BATCHNORM in follow and isinstance(norm, nn.BatchNorm2d):
            own += norm.parameters()
        own += norms.get(weight, [])
        found[weight] = [parameter for parameter in own if parameter is not None and parameter.requires_grad]
    return found


def _norms_after(modules: Mapping[str, nn.Module]) -> dict[str, list[nn.Parameter]]:
    """The LayerNorms' parameters by the last Linear before each; a norm before every Linear has none."""
    found: dict[str, list[nn.Parameter]] = {}
    last = None
    for name, module in modules.items():
        if isinstance(module, nn.Linear):
            last = name
        elif isinstance(module, nn.LayerNorm) and last is not None:
            found.setdefault(last, []).extend(module.parameters())
    return found
