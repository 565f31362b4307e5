"""Attention over the paged KV cache: stores the new keys and values, then attends. Every rank has its own heads."""

import anaphora_kernels
from torch import Tensor

from anaphora.context import ForwardContext


class Attention:
    """Causal grouped-query attention of one layer, without its projections."""

    def __init__(self, scale: float, *, sliding_window: int | None = None, soft_cap: float | None = None) -> None:
        """`scale` of query-key products, usually head_dim ** -0.5; others as in `anaphora_kernels.paged_attention`."""
        self.scale = scale
        self.sliding_window = sliding_window
        self.soft_cap = soft_cap

    def __call__(
        self,
        query: Tensor,  # [T, num_heads, head_dim], rotated
        key: Tensor,  # [T, num_kv_heads, head_dim], rotated
        value: Tensor,  # [T, num_kv_heads, head_dim]
        context: ForwardContext,
        layer_cache: tuple[Tensor, Tensor],  # this layer's key and value cache; written
    ) -> Tensor:
        """[T, num_heads * head_dim]."""
        key_cache, value_cache = layer_cache
        anaphora_kernels.kv_store(key, value, key_cache, value_cache, context.kv_indices)
        out = anaphora_kernels.paged_attention(
            query,
            key_cache,
            value_cache,
            context.attention,
            self.scale,
            sliding_window=self.sliding_window,
            soft_cap=self.soft_cap,
        )
        return out.flatten(1)
