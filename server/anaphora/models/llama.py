"""Llama, and what is built like it: https://arxiv.org/abs/2302.13971, https://arxiv.org/abs/2407.21783 (Llama 3),
https://arxiv.org/abs/2310.06825 (Mistral).

    residual = embed(tokens), delta = 0
    per layer:  residual += delta;  delta = attention(norm(residual));  residual += delta;  delta = mlp(norm(residual))
    hidden = norm(residual + delta),  logits = head(hidden)

`residual` is one tensor that the norms add to in place; what a block computes is handed on as `delta`. The last layer
stores the keys and values of all tokens, and computes the rest for those alone whose hidden states are wanted.
Where architectures differ by a switch or a size, `ModelConfig` says so. Equal to transformers' `LlamaForCausalLM` and
`MistralForCausalLM`, which is what the tests compare with.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from anaphora.context import ForwardContext
from anaphora.kv_cache import KvCache, KvLayout, LayerCache
from anaphora.layers.activation import Gate
from anaphora.layers.attention import Attention
from anaphora.layers.embedding import VocabParallelEmbedding, VocabParallelHead
from anaphora.layers.linear import GateUpLinear, QkvLinear, RowParallelLinear
from anaphora.layers.norm import HeadNorm, RmsNorm
from anaphora.layers.parameters import Part, Placement
from anaphora.layers.rotary import Angles, RotaryEmbedding
from anaphora.model_config import ModelConfig


def hidden_norm(config: ModelConfig, placement: Placement) -> RmsNorm:
    """A norm of hidden states."""
    return RmsNorm(config.hidden_size, config.norm_eps, placement, offset=config.norm_offset)


class LlamaAttention:
    """Projections, head norms (Qwen3, Gemma 3), rotation, attention, projection."""

    def __init__(self, config: ModelConfig, placement: Placement, index: int) -> None:
        """Of layer `index`."""
        heads, head_dim = config.num_heads, config.head_dim
        bias = config.attention_bias
        self.qkv_proj = QkvLinear(config.hidden_size, heads, config.num_kv_heads, head_dim, placement, bias=bias)
        self.o_proj = RowParallelLinear(heads * head_dim, config.hidden_size, placement, bias=bias)
        self.head_norms: dict[str, HeadNorm] = {}
        if config.qk_norm:
            for name in ("q_norm", "k_norm"):
                self.head_norms[name] = HeadNorm(head_dim, config.norm_eps, placement, offset=config.norm_offset)
        self.attention = Attention(
            config.attention_scale, sliding_window=config.windows[index], soft_cap=config.attention_soft_cap
        )
        self.is_last = index == config.num_layers - 1

    def __call__(
        self, x: Tensor, residual: Tensor, angles: Angles, context: ForwardContext, layer_cache: LayerCache
    ) -> tuple[Tensor, Tensor]:
        """What is to be added, and to what: [T, hidden] each; in the last layer of the sampled tokens alone."""
        query, key, value = self.qkv_proj.split(self.qkv_proj(x))
        if self.head_norms:
            self.head_norms["q_norm"].normalise(query)
            self.head_norms["k_norm"].normalise(key)
        self.attention.store(query, key, value, angles, context, layer_cache)
        attention = context.attention
        if self.is_last:
            query, residual, attention = context.select(query, residual)
        return self.o_proj(self.attention.attend(query, attention, context, layer_cache)), residual

    def parts(self, prefix: str) -> dict[str, Part]:
        """The checkpoint's names under `prefix`."""
        parts = self.qkv_proj.parts(f"{prefix}.q_proj", f"{prefix}.k_proj", f"{prefix}.v_proj")
        for name, norm in self.head_norms.items():
            parts |= norm.parts(f"{prefix}.{name}")
        return parts | self.o_proj.parts(f"{prefix}.o_proj")


class LlamaMlp:
    """A gated MLP: SwiGLU, or Gemma's GeGLU."""

    def __init__(self, config: ModelConfig, placement: Placement) -> None:
        """Sizes from `config`."""
        hidden, intermediate, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up_proj = GateUpLinear(hidden, intermediate, placement, bias=bias)
        self.gate = Gate(config.activation)
        self.down_proj = RowParallelLinear(intermediate, hidden, placement, bias=bias)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self.down_proj(self.gate(self.gate_up_proj(x)))

    def parts(self, prefix: str) -> dict[str, Part]:
        """The checkpoint's names under `prefix`."""
        gate_up = self.gate_up_proj.parts(f"{prefix}.gate_proj", f"{prefix}.up_proj")
        return gate_up | self.down_proj.parts(f"{prefix}.down_proj")


class LlamaLayer:
    """Attention and MLP, each behind a norm."""

    def __init__(self, config: ModelConfig, placement: Placement, index: int) -> None:
        """Of layer `index`."""
        self.input_layernorm = hidden_norm(config, placement)
        self.self_attn = LlamaAttention(config, placement, index)
        self.post_attention_layernorm = hidden_norm(config, placement)
        self.mlp = LlamaMlp(config, placement)

    def __call__(
        self,
        delta: Tensor | None,  # [T, hidden]: what the block before has computed; None before the first
        residual: Tensor,  # [T, hidden]; both blocks' inputs are added to it
        angles: Angles,
        context: ForwardContext,
        layer_cache: LayerCache,
    ) -> tuple[Tensor, Tensor]:
        """What the MLP has computed, and `residual` for the next layer to add it to; see LlamaAttention."""
        x = self.input_layernorm(delta, residual)
        delta, residual = self.self_attn(x, residual, angles, context, layer_cache)
        return self.mlp(self.post_attention_layernorm(delta, residual)), residual

    def parts(self, prefix: str) -> dict[str, Part]:
        """The checkpoint's names under `prefix`."""
        return (
            self.input_layernorm.parts(f"{prefix}.input_layernorm")
            | self.self_attn.parts(f"{prefix}.self_attn")
            | self.post_attention_layernorm.parts(f"{prefix}.post_attention_layernorm")
            | self.mlp.parts(f"{prefix}.mlp")
        )


class LlamaForCausalLM:
    """The whole model on this rank. See `anaphora.models.CausalLM` for the contract."""

    layer_class: ClassVar[type[LlamaLayer]] = LlamaLayer

    def __init__(self, config: ModelConfig, placement: Placement) -> None:
        """Parameters are not initialised: the loader fills `parts()`."""
        self.config = config
        self.dtype = placement.dtype
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size, placement)
        self.rotary = RotaryEmbedding(config.head_dim, config.rope_theta, config.rope_scaling, placement.device)
        self.layers = [self.layer_class(config, placement, index) for index in range(config.num_layers)]
        self.norm = hidden_norm(config, placement)
        num_kv_heads = self.layers[0].self_attn.qkv_proj.num_kv_heads
        self.kv_scales = placement.empty(config.num_layers, 2, num_kv_heads, dtype=torch.float32).fill_(1.0)
        tied = self.embed_tokens.weight if config.tie_word_embeddings else None
        self.lm_head = VocabParallelHead(config.vocab_size, config.hidden_size, placement, tied)

    def angles(self, positions: Tensor) -> Sequence[Angles]:
        """Rotations of positions [T] int64."""
        return [self.rotary(positions, self.dtype)]

    def forward(self, tokens: Tensor, angles: Sequence[Angles], context: ForwardContext, kv_cache: KvCache) -> Tensor:
        """Tokens [T] int64, and `angles` of theirs -> normalised hidden states [S, hidden]; writes the KV cache."""
        delta, residual = None, self.embed_tokens(tokens)
        for index, layer in enumerate(self.layers):
            delta, residual = layer(delta, residual, angles[0], context, kv_cache.layer(index))
        return self.norm(delta, residual)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, hidden] -> logits [n, vocab_size], on every rank, in the model's dtype."""
        return self.lm_head(hidden)

    # === the checkpoint ===

    @property
    def kv_layout(self) -> KvLayout:
        """What one token needs in this rank's KV pool."""
        num_layers, _, num_kv_heads = self.kv_scales.shape
        return KvLayout(num_layers, num_kv_heads, self.config.head_dim, self.dtype)

    def parts(self) -> dict[str, Part]:
        """Every tensor that a checkpoint holds, by its Hugging Face name."""
        parts = self.embed_tokens.parts("model.embed_tokens")
        for index, layer in enumerate(self.layers):
            parts |= layer.parts(f"model.layers.{index}")
            start = layer.self_attn.qkv_proj.first_kv_head
            for name, scales in zip(("k_scale", "v_scale"), self.kv_scales[index], strict=True):
                part = Part((self.config.num_kv_heads,), scales, start=start, is_optional=True)
                parts[f"model.layers.{index}.self_attn.{name}"] = part
        parts |= self.norm.parts("model.norm")
        return parts if self.config.tie_word_embeddings else parts | self.lm_head.parts("lm_head")

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may hold this tensor besides `parts()`: what is computed here, or tied."""
        tied = self.config.tie_word_embeddings and name == "lm_head.weight"
        return tied or name.endswith("rotary_emb.inv_freq")

    def from_gguf(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of a GGUF file as Hugging Face has it.

        llama.cpp rotates neighbours (x[2i], x[2i + 1]) and we rotate halves, so that its converter interleaves the
        rows of each query and key head: row (half, i) of a head is stored as row 2i + half.
        """
        for projection, num_heads in (("q_proj", self.config.num_heads), ("k_proj", self.config.num_kv_heads)):
            if f".{projection}." in name:
                pairs = tensor.view(num_heads, self.config.head_dim // 2, 2, *tensor.shape[1:])
                return pairs.transpose(1, 2).reshape(tensor.shape)
        return tensor
