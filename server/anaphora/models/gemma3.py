"""Gemma 3, the text models: https://arxiv.org/abs/2503.19786.

    residual = embed(tokens) * sqrt(hidden), delta = 0
    per layer:  residual += delta;  delta = norm(attention(norm(residual)));
                residual += delta;  delta = norm(mlp(norm(residual)))
    hidden = norm(residual + delta),  logits = embed^T(hidden)

Most layers look back over a window only, with rotary frequencies of their own. Weights of norms are stored less 1.
Equal to transformers' `Gemma3ForCausalLM`.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from anaphora.context import ForwardContext
from anaphora.kv_cache import KvCache, LayerCache
from anaphora.layers.parameters import Part, Placement
from anaphora.layers.rotary import Angles, RotaryEmbedding
from anaphora.model_config import ModelConfig
from anaphora.models.llama import LlamaForCausalLM, LlamaLayer, hidden_norm


class Gemma3Layer(LlamaLayer):
    """Attention and MLP, each between two norms."""

    def __init__(self, config: ModelConfig, placement: Placement, index: int) -> None:
        """Of layer `index`."""
        super().__init__(config, placement, index)
        self.pre_feedforward_layernorm = hidden_norm(config, placement)
        self.post_feedforward_layernorm = hidden_norm(config, placement)

    def __call__(
        self,
        delta: Tensor | None,
        residual: Tensor,
        angles: Angles,
        context: ForwardContext,
        layer_cache: LayerCache,
    ) -> tuple[Tensor, Tensor]:
        """See LlamaLayer."""
        x = self.input_layernorm(delta, residual)
        delta, residual = self.self_attn(x, residual, angles, context, layer_cache)
        delta = self.post_attention_layernorm(delta)
        delta = self.mlp(self.pre_feedforward_layernorm(delta, residual))
        return self.post_feedforward_layernorm(delta), residual

    def parts(self, prefix: str) -> dict[str, Part]:
        """The checkpoint's names under `prefix`."""
        return (
            super().parts(prefix)
            | self.pre_feedforward_layernorm.parts(f"{prefix}.pre_feedforward_layernorm")
            | self.post_feedforward_layernorm.parts(f"{prefix}.post_feedforward_layernorm")
        )


class Gemma3ForCausalLM(LlamaForCausalLM):
    """The whole model on this rank. See `anaphora.models.CausalLM` for the contract."""

    layer_class: ClassVar[type[LlamaLayer]] = Gemma3Layer

    def __init__(self, config: ModelConfig, placement: Placement) -> None:
        """Parameters are not initialised: the loader fills `parts()`."""
        super().__init__(config, placement)
        local_theta = config.local_rope_theta or config.rope_theta
        self.local_rotary = RotaryEmbedding(config.head_dim, local_theta, None, placement.device)
        # Rounded to the model's dtype before the product, as in training: 25.25 instead of 25.298 in bfloat16.
        self.embedding_scale = torch.tensor(config.hidden_size**0.5).to(placement.dtype).item()

    def angles(self, positions: Tensor) -> Sequence[Angles]:
        """Rotations of positions [T] int64: of layers that see everything, and of those with a window."""
        return [self.rotary(positions, self.dtype), self.local_rotary(positions, self.dtype)]

    def forward(self, tokens: Tensor, angles: Sequence[Angles], context: ForwardContext, kv_cache: KvCache) -> Tensor:
        """Tokens [T] int64, and `angles` of theirs -> normalised hidden states [S, hidden]; writes the KV cache."""
        delta, residual = None, self.embed_tokens(tokens) * self.embedding_scale
        for index, (layer, window) in enumerate(zip(self.layers, self.config.windows, strict=True)):
            layer_angles = angles[0 if window is None else 1]
            delta, residual = layer(delta, residual, layer_angles, context, kv_cache.layer(index))
        return self.norm(delta, residual)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, hidden] -> logits [n, vocab_size], on every rank, in the model's dtype."""
        logits, cap = self.lm_head(hidden), self.config.logit_soft_cap
        return logits if cap is None else (logits / cap).tanh_().mul_(cap)

    def from_gguf(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of a GGUF file as Hugging Face has it: llama.cpp's converter adds 1 to the weights of norms."""
        return tensor - self.config.norm_offset if name.endswith("norm.weight") else tensor
