"""What each op computes from random inputs, with any implementation, anywhere: results that can be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import anaphora_kernels
import numpy as np
import torch
from anaphora.model_config import ModelConfig
from anaphora_kernels import AttentionMetadata, SamplingMetadata, SharedPrefixes
from anaphora_kernels.sampling import RandomRows
from attention import FP8, grid
from torch import Tensor

BLOCK_SIZE = 16
T = 33  # tokens


@dataclass(frozen=True)
class Run:
    """One computation: what with, and in what."""

    config: ModelConfig
    quick: bool
    implementation: str
    dtype: torch.dtype
    device: torch.device
    rounding: torch.dtype  # inputs are rounded to this, whatever they are computed in

    def inputs(self, seed: int = 0) -> Callable[..., Tensor]:
        """A source of tensors of any shape: the same ones for the same seed and rounding."""
        generator = torch.Generator().manual_seed(seed)
        return lambda *size: torch.randn(*size, generator=generator).to(self.rounding).to(self.device, self.dtype)


Check = Callable[[Run], list[Tensor]]


def attention(run: Run) -> list[Tensor]:
    """All rows, lengths and options of the grid."""
    return [_attend(run, seed, *case) for seed, case in enumerate(grid(quick=run.quick))]


def attention_fp8(run: Run) -> list[Tensor]:
    """The same over an FP8 cache."""
    return [_attend(run, seed, *case, cache_dtype=FP8) for seed, case in enumerate(grid(quick=run.quick))]


def _attend(
    run: Run,
    seed: int,
    queries: list[int],
    contexts: list[int],
    options: dict[str, object],
    *,
    cache_dtype: torch.dtype | None = None,
) -> Tensor:
    random, config = run.inputs(seed), run.config
    blocks = [-(-context // BLOCK_SIZE) for context in contexts]
    order = torch.randperm(sum(blocks), generator=torch.Generator().manual_seed(seed)).to(torch.int32)
    tables = torch.nn.utils.rnn.pad_sequence(order.split(blocks), batch_first=True)
    prefixes = None
    if options.get("shared"):
        tables[1:5, :2] = tables[0, :2]
        prefixes = SharedPrefixes.find(tables.numpy(), np.array(contexts), BLOCK_SIZE, min_saved_tokens=1)
    cache = random(2, sum(blocks), BLOCK_SIZE, config.num_kv_heads, config.head_dim)
    for row, context in enumerate(contexts):  # what no context reaches must reach no result
        cache[:, int(tables[row, blocks[row] - 1]), (context - 1) % BLOCK_SIZE + 1 :] = float("nan")
    query = random(sum(queries), config.num_heads, config.head_dim)
    arguments = {name: value for name, value in options.items() if name not in ("sinks", "shared")}
    if options.get("sinks"):
        arguments["sinks"] = random(config.num_heads)
    if cache_dtype is not None:
        cache = cache.to(cache_dtype)
        for name in ("key_scale", "value_scale"):
            arguments[name] = random(config.num_kv_heads).float().abs() + 0.5
    metadata = AttentionMetadata.build(tables.to(run.device), queries, contexts)
    metadata = replace(metadata, shared_prefixes=prefixes.to(run.device) if prefixes else None)
    scale = config.head_dim**-0.5
    return anaphora_kernels.paged_attention(
        query, cache[0], cache[1], metadata, scale, implementation=run.implementation, **arguments
    )


def rope_store(run: Run) -> list[Tensor]:
    """Rotated queries, and the caches."""
    random, config = run.inputs(), run.config
    query, key, value = (random(T, n, config.head_dim) for n in (config.num_heads, *[config.num_kv_heads] * 2))
    cos, sin = random(T, config.head_dim // 2), random(T, config.head_dim // 2)
    caches = [random(5, BLOCK_SIZE, config.num_kv_heads, config.head_dim) for _ in range(2)]
    cells = torch.randperm(80, generator=torch.Generator().manual_seed(0))[:T].to(run.device)
    anaphora_kernels.rope_kv_store(query, key, value, cos, sin, *caches, cells, implementation=run.implementation)
    return [query, *caches]


def copies(run: Run) -> list[Tensor]:
    """A pool after two copies."""
    pool = run.inputs()(3, 2, 6, BLOCK_SIZE, run.config.num_kv_heads, run.config.head_dim)
    sources, destinations = (torch.tensor(blocks, device=run.device) for blocks in ([5, 0], [2, 3]))
    anaphora_kernels.copy_blocks(pool, sources, destinations, implementation=run.implementation)
    return [pool]


def norm(run: Run) -> list[Tensor]:
    """The normalised sum, and the sum."""
    random, size = run.inputs(), run.config.hidden_size
    x, residual, weight = random(T, size), random(T, size), random(size)
    out = anaphora_kernels.rms_norm(x, weight, 1e-5, residual=residual, implementation=run.implementation)
    return [out, residual]


def silu(run: Run) -> list[Tensor]:
    """An MLP's gate."""
    gate_up = run.inputs()(T, 2 * run.config.intermediate_size)
    return [anaphora_kernels.silu_mul(gate_up, implementation=run.implementation)]


def gelu(run: Run) -> list[Tensor]:
    """Another's."""
    gate_up = run.inputs()(T, 2 * run.config.intermediate_size)
    return [anaphora_kernels.gelu_mul(gate_up, implementation=run.implementation)]


def sample(run: Run) -> list[Tensor]:
    """Greedy rows and random ones in turns: tokens and their log-probabilities."""
    logits = run.inputs()(17, run.config.vocab_size) * 4
    random_rows = RandomRows(
        rows=torch.arange(0, 17, 2, device=run.device),
        temperature=torch.full((9,), 0.8, device=run.device),
        seeds=torch.arange(9, device=run.device),
        num_generated=torch.arange(9, device=run.device),
        top_k=torch.full((9,), 50, device=run.device),
        max_top_k=50,
    )
    metadata = SamplingMetadata(random=random_rows)
    samples = anaphora_kernels.sampling(logits, metadata, implementation=run.implementation)
    return [samples.tokens, samples.logprobs]


# (op, dtype of its cache if it is another, the check)
CHECKS: tuple[tuple[str, torch.dtype | None, Check], ...] = (
    ("paged_attention", None, attention),
    ("paged_attention", FP8, attention_fp8),
    ("rope_kv_store", None, rope_store),
    ("copy_blocks", None, copies),
    ("rms_norm", None, norm),
    ("silu_mul", None, silu),
    ("gelu_mul", None, gelu),
    ("sampling", None, sample),
)
