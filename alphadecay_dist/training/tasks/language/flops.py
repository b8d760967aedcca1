"""What a LLaMA costs."""

from __future__ import annotations

from torch import nn
from transformers import LlamaConfig


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
