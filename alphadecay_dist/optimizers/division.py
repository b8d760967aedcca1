"""Which of the tuned weights get Muon, in groups of their own; which of these go head by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn

from alphadecay_dist.errors import UserError
from alphadecay_dist.optimizers.settings import MuonSettings
from alphadecay_dist.params.fused import Cut
from alphadecay_dist.params.groups import NAMES_KEY, RATE_KEY, names_in, weights_in
from alphadecay_dist.params.heads import QKV_IN_ONE, K, Q, V, attentions, cut_by_heads, role_of
from alphadecay_dist.params.inventory import Weight

PARTS = {QKV_IN_ONE: (Q, K, V)}  # what a fused weight of attention consists of


class Division(NamedTuple):
    """Param groups, and the weights that get Muon.

    Attributes:
        muon: groups of these.
        adamw: groups of all else.
        weights: those that get Muon.
    """

    muon: list[dict[str, Any]]
    adamw: list[dict[str, Any]]
    weights: list[Weight]


def divided(model: nn.Module, groups: Sequence[dict[str, Any]], settings: MuonSettings) -> Division:
    """The groups of Muon and those of AdamW.

    A group for each weight goes to one of the two. A group for all of them is split in two, of which each
    names its own. Muon's groups get :data:`alphadecay_dist.params.groups.RATE_KEY`.

    Args:
        model: the model, sharded or not.
        groups: of :func:`alphadecay_dist.param_groups`, without followers.
        settings: which weights get Muon, and at which rate.

    Raises:
        UserError: a pattern that matches no tuned matrix, or no matrix at all.
    """
    weights = chosen(weights_in(groups, model, {}), settings.modules)
    names = {weight.name for weight in weights}
    muon, adamw = [], []
    for group in groups:
        mine, others = _parts_of(group, names)
        muon += [{**mine, RATE_KEY: settings.muon_rate / settings.lr if settings.lr else 1.0}] if mine else []
        adamw += [others] if others else []
    return Division(muon, adamw, weights)


def chosen(weights: Sequence[Weight], patterns: Sequence[str] | None) -> list[Weight]:
    """The weights that get Muon: matrices of two dimensions, those that patterns name, or all.

    Args:
        weights: the tuned ones.
        patterns: glob patterns of their names.

    Raises:
        UserError: a pattern that matches none, or no matrix at all.
    """
    matrices = [weight for weight in weights if len(weight.shape) == 2]
    for pattern in patterns or ():
        if not any(fnmatchcase(weight.name, pattern) for weight in matrices):
            raise UserError(
                f"muon_modules: {pattern!r} matches no tuned matrix; give a glob over names such as "
                f"{matrices[0].name if matrices else 'model.layers.0.mlp.up_proj'!r}"
            )
    if patterns is not None:
        matrices = [own for own in matrices if any(fnmatchcase(own.name, pattern) for pattern in patterns)]
    if not matrices:
        raise UserError("muon_modules: found no tuned matrix for Muon; use optimizer.name adamw")
    return matrices


def head_cuts(weights: Sequence[Weight], model: nn.Module, heads: Sequence[str]) -> dict[str, Cut]:
    """How the weights of attention are cut into heads, by name; what has a single head is left out.

    Args:
        weights: those that get Muon.
        model: whose modules or config tell the number of heads.
        heads: which of q, k, v and o; a fused weight of q, k and v is cut where all three are asked for.

    Raises:
        UserError: nothing is there of one of these, or the heads of a weight are not known.
    """
    if not heads:
        return {}
    found = cut_by_heads(weights, attentions(model), fits=lambda weight: True)
    roles = {weight.name: _roles_of(weight.name) for weight in weights}
    asked = {name for name, own in roles.items() if own and set(own) <= set(heads)}
    for name, why in found.whole.items():
        if name in asked:
            raise UserError(f"muon_heads: {name} cannot be cut by heads: {why}; leave it out")
    missing = [head for head in heads if not any(head in roles[name] for name in asked)]
    if missing:
        raise UserError(
            f"muon_heads: found {', '.join(heads)}, but no weight of Muon's is {missing[0]} alone or with "
            "others of these; leave it out, or ask for q, k and v where they are fused"
        )
    return {own.name: own.cut for own in found.weights if own.name in asked and own.cut is not None}


def _roles_of(name: str) -> tuple[str, ...]:
    role = role_of(name)
    return () if role is None else PARTS.get(role, (role,))


def _parts_of(
    group: Mapping[str, Any], names: set[str]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What of a group is Muon's, and what is not."""
    own = names_in(group)
    if NAMES_KEY not in group:
        return (dict(group), None) if own and own[0] in names else (None, dict(group))
    sides = []
    for is_muon in (True, False):
        pairs = [pair for pair in zip(own, group["params"], strict=True) if (pair[0] in names) == is_muon]
        kept = {NAMES_KEY: tuple(name for name, _ in pairs), "params": [parameter for _, parameter in pairs]}
        sides.append({**group, **kept} if pairs else None)
    return sides[0], sides[1]
