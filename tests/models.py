"""Small models of transformers that hold their weights in unusual ways, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as hf
from torch import nn

LAYERS = {"num_hidden_layers": 2, "vocab_size": 96}
LLAMA = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 2}
GROUPED = {"hidden_size": 128, "num_attention_heads": 4}  # with 2 key-value heads q, k and v are no thirds
GPT2 = {"n_embd": 64, "n_head": 2, "n_layer": 2, "vocab_size": 96, "n_positions": 32}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def causal(kind: str, **sizes: object) -> nn.Module:
    """A causal language model of that family."""
    config = getattr(hf, f"{kind}Config")(**sizes)
    return getattr(hf, f"{kind}ForCausalLM")(config)


def vision_encoder_decoder() -> nn.Module:
    """A ViT that a GPT-2 with cross attention reads."""
    vit = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    encoder = hf.ViTConfig(image_size=32, patch_size=8, **vit)
    decoder = hf.GPT2Config(**GPT2, add_cross_attention=True)
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    return hf.VisionEncoderDecoderModel(config=config)


def dbrx() -> nn.Module:
    """A DBRX, whose feed-forward config has a width of its own from transformers 5 on."""
    heads = {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}
    experts = {"ffn_hidden_size": 64, "moe_num_experts": 3, "moe_top_k": 1}
    sizes = {"d_model": 64, "n_heads": 2, "n_layers": 2, "vocab_size": 96, "max_seq_len": 32}
    config = hf.DbrxConfig(**sizes, **IDS, attn_config=heads, ffn_config=experts)
    if hasattr(config.ffn_config, "hidden_size"):
        config.ffn_config.hidden_size = 64
    return hf.DbrxForCausalLM(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: causal("Llama", **LLAMA, **LAYERS),
    "phi3": lambda: causal("Phi3", **{**LLAMA, **GROUPED}, **LAYERS, **IDS),
    "gpt_neox": lambda: causal(
        "GPTNeoX", hidden_size=64, intermediate_size=128, num_attention_heads=2, **LAYERS, **IDS
    ),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "mixtral": lambda: causal("Mixtral", **LLAMA, **LAYERS, **IDS, num_local_experts=2),
    "qwen2_moe": lambda: causal(
        "Qwen2Moe",
        **LLAMA,
        **LAYERS,
        **IDS,
        num_experts=2,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        num_experts_per_tok=1,
    ),
    "qwen3_moe": lambda: causal(
        "Qwen3Moe", **LLAMA, **LAYERS, **IDS, head_dim=32, num_experts=52, moe_intermediate_size=52
    ),
    "gpt_oss": lambda: causal("GptOss", **LLAMA, **LAYERS, **IDS, head_dim=32, num_local_experts=2),
    "jetmoe": lambda: causal(
        "JetMoe",
        **LAYERS,
        **IDS,
        hidden_size=64,
        intermediate_size=64,
        num_local_experts=2,
        kv_channels=32,
        num_key_value_heads=2,
    ),
    "dbrx": dbrx,
    "vit_gpt2": vision_encoder_decoder,
}


def small(name: str) -> nn.Module:
    """A model of ``MODELS``, its weights drawn from a seed and of different spectra."""
    torch.manual_seed(0)
    return MODELS[name]()


class Blocks(nn.Module):
    """Somebody's own model: its forward gives the loss."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(64, 1)

    def forward(self, batch):
        for block in self.blocks:
            batch = block(batch)
        return self.head(batch).square().mean()
