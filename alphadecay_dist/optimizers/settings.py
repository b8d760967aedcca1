"""What Muon is told, whichever engine holds the weights."""

from __future__ import annotations

from dataclasses import dataclass

from alphadecay_dist.optimizers.newton_schulz import ORIGINAL, STEPS

HEADS = ("q", "k", "v", "o")  # whose weights may be orthogonalised head by head


@dataclass(frozen=True)
class MuonSettings:
    """Muon for the matrices, AdamW for the rest.

    Attributes:
        lr: AdamW's peak learning rate.
        muon_lr: Muon's; None is the same.
        momentum: of Muon.
        nesterov: whether Muon mixes the gradient in once more.
        ns_steps: iterations of Newton-Schulz.
        adjust_lr: how the rate follows the shape, see
            :func:`alphadecay_dist.optimizers.newton_schulz.rate_ratio`.
        heads: of ``HEADS``, what is orthogonalised head by head.
        modules: glob patterns of tuned weights that get Muon; None is all.
        betas: of AdamW.
        eps: of AdamW.
        fused: AdamW with torch's fused kernels (CUDA).
        memory_budget: of :class:`alphadecay_dist.ShardedMuon`; None is the default.
    """

    lr: float
    muon_lr: float | None = None
    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = STEPS
    adjust_lr: str = ORIGINAL
    heads: tuple[str, ...] = ()
    modules: tuple[str, ...] | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    fused: bool = False
    memory_budget: int | None = None

    @property
    def muon_rate(self) -> float:
        """Muon's peak learning rate."""
        return self.lr if self.muon_lr is None else self.muon_lr
