"""Attention over the paged KV cache: rotates, stores the new keys and values, attends. Every rank has its own heads."""

import anaphora_kernels
from anaphora_kernels import AttentionMetadata
from torch import Tensor

from anaphora.context import ForwardContext
from anaphora.kv_cache import LayerCache
from anaphora.layers.rotary import Angles


class Attention:
    """Causal grouped-query attention of one layer, without its projections: `store`, then `attend`."""

    def __init__(self, scale: float, *, sliding_window: int | None = None, soft_cap: float | None = None) -> None:
        """`scale` of query-key products, usually head_dim ** -0.5; others as in `anaphora_kernels.paged_attention`."""
        self.scale = scale
        self.sliding_window = sliding_window
        self.soft_cap = soft_cap

    def store(
        self,
        query: Tensor,  # [T, num_heads, head_dim]; rotated in place
        key: Tensor,  # [T, num_kv_heads, head_dim]; undefined afterwards
        value: Tensor,  # [T, num_kv_heads, head_dim]
        angles: Angles,
        context: ForwardContext,
        cache: LayerCache,  # written
    ) -> None:
        """Rotates, and stores keys and values."""
        anaphora_kernels.rope_kv_store(
            query,
            key,
            value,
            *angles,
            cache.keys,
            cache.values,
            context.kv_indices,
            key_scale=cache.key_scale,
            value_scale=cache.value_scale,
        )

    def attend(
        self,
        query: Tensor,  # [n, num_heads, head_dim], rotated
        attention: AttentionMetadata,  # of these n queries
        context: ForwardContext,
        cache: LayerCache,
    ) -> Tensor:
        """[n, num_heads * head_dim]."""
        out = anaphora_kernels.paged_attention(
            query,
            cache.keys,
            cache.values,
            attention,
            self.scale,
            sliding_window=self.sliding_window,
            soft_cap=self.soft_cap,
            key_scale=cache.key_scale,
            value_scale=cache.value_scale,
            implementation=context.attention_backend,
        )
        return out.flatten(1)
