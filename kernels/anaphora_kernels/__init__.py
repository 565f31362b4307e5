"""The catalogue: every operation that a layer may ask for, one public function each.

    attention   paged_attention(query, key_cache, value_cache, metadata, scale, ...)  -> [T, heads, head_dim]
    KV cache    kv_indices(block_tables, token_rows, positions, block_size)           -> [T]
                kv_store(key, value, key_cache, value_cache, indices)                 in place
                rope_kv_store(query, key, value, cos, sin, key_cache, value_cache, indices)   in place: rope, kv_store
                copy_blocks(pool, sources, destinations)                              in place
    products    linear(x, weight, bias)                                               -> [T, out]
                linear_fp8(x, weight, weight_scales, bias, input_scale=None)          -> [T, out]
                quantize_fp8(x, scale=None)                                           -> FP8 [T, n], scales [T, 1]
                embedding(indices, weight, dtype)                                     -> [T, columns]
    norms       rms_norm(x, weight, eps, residual=None)                               -> [T, hidden]
    rotary      rope(x, cos, sin)                                                     in place
    MLP         gate_mul(gate_up, activation)                                         -> [T, intermediate]
    sampling    sampling(logits, metadata)                                            -> Samples of [R]

T is the number of tokens of a step, all rows together. Shapes, contract and layout stand in each op's folder, beside
its `reference.py`, which is the specification in plain torch; `registry.py` says which implementation runs where.
Every op takes `implementation=` to name one. This package depends on torch alone and never imports `anaphora`.
"""

from anaphora_kernels.copy_blocks import copy_blocks
from anaphora_kernels.embedding import embedding
from anaphora_kernels.gate_mul import gate_mul
from anaphora_kernels.kv_store import kv_indices, kv_store
from anaphora_kernels.linear import linear
from anaphora_kernels.linear_fp8 import linear_fp8
from anaphora_kernels.paged_attention import AttentionMetadata, paged_attention
from anaphora_kernels.paged_attention.shared_prefixes import SharedPrefixes
from anaphora_kernels.quantize_fp8 import quantize_fp8
from anaphora_kernels.rms_norm import rms_norm
from anaphora_kernels.rope import rope
from anaphora_kernels.rope_kv_store import rope_kv_store
from anaphora_kernels.sampling import SamplingMetadata, sampling

__all__ = [
    "AttentionMetadata",
    "SamplingMetadata",
    "SharedPrefixes",
    "copy_blocks",
    "embedding",
    "gate_mul",
    "kv_indices",
    "kv_store",
    "linear",
    "linear_fp8",
    "paged_attention",
    "quantize_fp8",
    "rms_norm",
    "rope",
    "rope_kv_store",
    "sampling",
]
