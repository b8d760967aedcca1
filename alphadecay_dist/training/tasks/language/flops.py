"""What a model costs, and how much of a device it uses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import LlamaConfig

# Dense bf16 FLOP/s by a part of the device's name, from the makers' data sheets; the first that fits.
PEAKS = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}


@dataclass(frozen=True)
class Utilization:
    """What an update costs, against what the devices could do.

    Attributes:
        flops: of one update, over all ranks.
        peak: FLOP/s of all ranks' devices; None where it is not known.
    """

    flops: float
    peak: float | None

    def of(self, seconds: float) -> float | None:
        """Model FLOPs utilization (MFU) of an update of so many seconds, in [0, 1]."""
        return None if self.peak is None else self.flops / seconds / self.peak


def flops_per_token(shapes: nn.Module, config: LlamaConfig, seq_len: int) -> float:
    """FLOPs of forward and backward a token (arXiv 2204.02311, appendix B).

    6 for every weight that multiplies (all but the embedding's), and 12 times layers, width of all heads and
    sequence length for attention, of which a causal mask needs only half.

    Args:
        shapes: the model, on any device.
        config: its config.
        seq_len: tokens a sequence.
    """
    embedding = config.vocab_size * config.hidden_size
    tied = bool(config.tie_word_embeddings)
    weights = sum(parameter.numel() for parameter in shapes.parameters()) - (0 if tied else embedding)
    width = config.num_attention_heads * config.head_dim
    return 6 * weights + 12 * config.num_hidden_layers * width * seq_len


def peak_flops(device_name: str | None, dtype: str) -> float | None:
    """FLOP/s of a device at its best in a type of compute; None where it is not known."""
    if device_name is None or dtype != "bfloat16":
        return None
    return next((peak for part, peak in PEAKS.items() if part in device_name), None)
