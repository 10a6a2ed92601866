"""Shapes of published models, as `benches/workloads/model.rs` has them, with random weights."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; `kv_heads` is None for GPT-2."""

    layers: int
    heads: int
    d_model: int
    d_mlp: int
    vocab: int
    max_positions: int
    tied: bool
    kv_heads: int | None = None
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: dict | None = None

    def config(self) -> PretrainedConfig:
        if self.kv_heads is None:
            return GPT2Config(
                n_layer=self.layers,
                n_head=self.heads,
                n_embd=self.d_model,
                n_inner=self.d_mlp,
                vocab_size=self.vocab,
                n_positions=self.max_positions,
                tie_word_embeddings=self.tied,
            )
        return LlamaConfig(
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            hidden_size=self.d_model,
            intermediate_size=self.d_mlp,
            vocab_size=self.vocab,
            max_position_embeddings=self.max_positions,
            tie_word_embeddings=self.tied,
            rms_norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
            rope_scaling=self.rope_scaling,
        )

    def tiny(self) -> "Shape":
        """A small model of the same kind."""
        kv_heads = None if self.kv_heads is None else 4 * self.kv_heads // self.heads
        return replace(self, layers=3, heads=4, kv_heads=kv_heads, d_model=64, d_mlp=256)

    def flops(self, pos: int) -> int:
        """Of a forward pass over a row, with logits at the last position.

        As `ModelDims` of burn-align-models counts: two for each multiplication of a matrix
        product, all keys for each query.
        """
        d_head = self.d_model // self.heads
        keys = self.d_model * 2 * (self.kv_heads or self.heads) * d_head
        queries = (self.d_model + pos) * 2 * self.d_model
        mlp = (2 if self.kv_heads is None else 3) * self.d_model * self.d_mlp
        return 2 * (self.layers * pos * (keys + queries + mlp) + self.d_model * self.vocab)


def gpt2(layers: int, heads: int, d_model: int) -> Shape:
    return Shape(layers, heads, d_model, 4 * d_model, vocab=50_257, max_positions=1024, tied=True)


LLAMA2_7B = Shape(32, 32, 4096, 11_008, 32_000, max_positions=4096, tied=False, kv_heads=32)
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

PRESETS = {
    "gpt2": gpt2(12, 12, 768),
    "distilgpt2": gpt2(6, 12, 768),
    "gpt2-medium": gpt2(24, 16, 1024),
    "gpt2-large": gpt2(36, 20, 1280),
    "gpt2-xl": gpt2(48, 25, 1600),
    "llama3.2-1b": Shape(
        layers=16,
        heads=32,
        kv_heads=8,
        d_model=2048,
        d_mlp=8192,
        vocab=128_256,
        max_positions=131_072,
        tied=True,
        rope_theta=500_000.0,
        rope_scaling=LLAMA3_SCALING,
    ),
    "llama-7b": replace(LLAMA2_7B, max_positions=2048, rms_norm_eps=1e-6),
    "llama2-7b": LLAMA2_7B,
    "llama3-8b": replace(
        LLAMA2_7B, kv_heads=8, d_mlp=14_336, vocab=128_256, max_positions=8192, rope_theta=500_000.0
    ),
    "smollm2-135m": Shape(
        layers=30,
        heads=9,
        kv_heads=3,
        d_model=576,
        d_mlp=1536,
        vocab=49_152,
        max_positions=8192,
        tied=True,
        rope_theta=100_000.0,
    ),
}


def build(
    shape: Shape, attention: str, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """A model with random weights, drawn on the device and in the dtype."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(
            shape.config(), dtype=dtype, attn_implementation=attention
        )
    return model.eval().requires_grad_(False)


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    return model.base_model.h if model.config.model_type == "gpt2" else model.base_model.layers


def activation(output: Tensor | tuple) -> Tensor:
    """What a module of a block computes: some return more than that."""
    return output[0] if isinstance(output, tuple) else output


def last_logits(model: PreTrainedModel, ids: Tensor, **options: bool) -> Tensor:
    """[batch, vocab]"""
    hidden = model.base_model(ids, **options).last_hidden_state
    return model.lm_head(hidden[:, -1])


def weight_bytes(model: PreTrainedModel) -> int:
    """Of all weights that a forward pass reads in full: no embeddings but the unembedding."""
    weights = [*blocks(model).parameters(), model.lm_head.weight]
    return sum(weight.numel() * weight.element_size() for weight in weights)
