"""Llama, and what is built like it: https://arxiv.org/abs/2302.13971, https://arxiv.org/abs/2407.21783 (Llama 3).

    delta = embed(tokens), residual = 0
    per layer:  residual += delta;  delta = attention(norm(residual));  residual += delta;  delta = mlp(norm(residual))
    hidden = norm(residual + delta),  logits = head(hidden)

`residual` is one tensor that the norms add to in place; what a block computes is handed on as `delta`.
Equal to transformers' `LlamaForCausalLM`, which is what the tests compare with.
"""

import torch
from torch import Tensor

from anaphora.context import ForwardContext
from anaphora.kv_cache import KvCache, KvLayout
from anaphora.layers.activation import silu_mul
from anaphora.layers.attention import Attention
from anaphora.layers.embedding import VocabParallelEmbedding, VocabParallelHead
from anaphora.layers.linear import GateUpLinear, QkvLinear, RowParallelLinear
from anaphora.layers.norm import RmsNorm
from anaphora.layers.parameters import Part, Placement
from anaphora.layers.rotary import RotaryEmbedding, rotate
from anaphora.model_config import ModelConfig

Angles = tuple[Tensor, Tensor]  # cosines and sines, [T, head_dim / 2] each


class LlamaAttention:
    """Projections, rotation, attention, projection."""

    def __init__(self, config: ModelConfig, placement: Placement, sliding_window: int | None) -> None:
        """`sliding_window` in positions; None: full attention."""
        heads, head_dim = config.num_heads, config.head_dim
        bias = config.attention_bias
        self.qkv_proj = QkvLinear(config.hidden_size, heads, config.num_kv_heads, head_dim, placement, bias=bias)
        self.o_proj = RowParallelLinear(heads * head_dim, config.hidden_size, placement, bias=bias)
        self.attention = Attention(head_dim, sliding_window=sliding_window)

    def __call__(
        self, x: Tensor, angles: Angles, context: ForwardContext, layer_cache: tuple[Tensor, Tensor]
    ) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        heads = self.qkv_proj(x)
        rotate(heads[:, : -self.qkv_proj.num_kv_heads], angles)  # queries and keys, not values
        query, key, value = self.qkv_proj.split(heads)
        return self.o_proj(self.attention(query, key, value, context, layer_cache))

    def parts(self, prefix: str) -> dict[str, Part]:
        """The checkpoint's names under `prefix`."""
        qkv = self.qkv_proj.parts(f"{prefix}.q_proj", f"{prefix}.k_proj", f"{prefix}.v_proj")
        return qkv | self.o_proj.parts(f"{prefix}.o_proj")


class LlamaMlp:
    """SwiGLU."""

    def __init__(self, config: ModelConfig, placement: Placement) -> None:
        """Sizes from `config`."""
        hidden, intermediate, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up_proj = GateUpLinear(hidden, intermediate, placement, bias=bias)
        self.down_proj = RowParallelLinear(intermediate, hidden, placement, bias=bias)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self.down_proj(silu_mul(self.gate_up_proj(x)))

    def parts(self, prefix: str) -> dict[str, Part]:
        """The checkpoint's names under `prefix`."""
        gate_up = self.gate_up_proj.parts(f"{prefix}.gate_proj", f"{prefix}.up_proj")
        return gate_up | self.down_proj.parts(f"{prefix}.down_proj")


class LlamaLayer:
    """Attention and MLP, each behind a norm."""

    def __init__(self, config: ModelConfig, placement: Placement, sliding_window: int | None) -> None:
        """See LlamaAttention."""
        self.input_layernorm = RmsNorm(config.hidden_size, config.norm_eps, placement)
        self.self_attn = LlamaAttention(config, placement, sliding_window)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.norm_eps, placement)
        self.mlp = LlamaMlp(config, placement)

    def __call__(
        self,
        delta: Tensor,  # [T, hidden]: what the block before has computed
        residual: Tensor,  # [T, hidden]; both blocks' inputs are added to it
        angles: Angles,
        context: ForwardContext,
        layer_cache: tuple[Tensor, Tensor],
    ) -> Tensor:
        """What the MLP has computed, for the next layer to add: [T, hidden]."""
        delta = self.self_attn(self.input_layernorm(delta, residual), angles, context, layer_cache)
        return self.mlp(self.post_attention_layernorm(delta, residual))

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

    def __init__(self, config: ModelConfig, placement: Placement, *, sliding_window: int | None = None) -> None:
        """Parameters are not initialised: the loader fills `parts()`. Llama itself has no sliding window."""
        self.config = config
        self.dtype = placement.dtype
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size, placement)
        self.rotary = RotaryEmbedding(config.head_dim, config.rope_theta, config.rope_scaling, placement.device)
        self.layers = [LlamaLayer(config, placement, sliding_window) for _ in range(config.num_layers)]
        self.norm = RmsNorm(config.hidden_size, config.norm_eps, placement)
        tied = self.embed_tokens.weight if config.tie_word_embeddings else None
        self.lm_head = VocabParallelHead(config.vocab_size, config.hidden_size, placement, tied)

    def forward(self, tokens: Tensor, positions: Tensor, context: ForwardContext, kv_cache: KvCache) -> Tensor:
        """Tokens and their positions, [T] int64 each -> normalised hidden states [T, hidden]; writes the KV cache."""
        angles = self.rotary(positions, self.dtype)
        delta = self.embed_tokens(tokens)
        residual = torch.zeros_like(delta)
        for index, layer in enumerate(self.layers):
            delta = layer(delta, residual, angles, context, kv_cache.layer(index))
        return self.norm(delta, residual)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, hidden] -> logits [n, vocab_size], on every rank, in the model's dtype."""
        return self.lm_head(hidden)

    # === the checkpoint ===

    @property
    def kv_layout(self) -> KvLayout:
        """What one token needs in this rank's KV pool."""
        num_kv_heads = self.layers[0].self_attn.qkv_proj.num_kv_heads
        return KvLayout(len(self.layers), num_kv_heads, self.config.head_dim, self.dtype)

    def parts(self) -> dict[str, Part]:
        """Every tensor that a checkpoint must hold, by its Hugging Face name."""
        parts = self.embed_tokens.parts("model.embed_tokens")
        for index, layer in enumerate(self.layers):
            parts |= layer.parts(f"model.layers.{index}")
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
