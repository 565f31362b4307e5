"""What each op computes from random inputs, with any implementation, anywhere: results that can be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import anaphora_kernels
import numpy as np
import torch
from anaphora.model_config import ModelConfig
from anaphora_kernels import AttentionMetadata, SamplingMetadata, SharedPrefixes
from anaphora_kernels.sampling import LogitBias, Penalties, RandomRows
from attention import FP8, grid
from torch import Tensor

BLOCK_SIZE = 16
T = 33  # tokens
ROWS = 17  # that sample


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


def rotation(run: Run) -> list[Tensor]:
    """Rotated heads."""
    random, config = run.inputs(), run.config
    heads, cos, sin = random(T, config.num_heads, config.head_dim), *(random(T, config.head_dim // 2) for _ in "cs")
    anaphora_kernels.rope(heads, cos, sin, implementation=run.implementation)
    return [heads]


def store(run: Run) -> list[Tensor]:
    """The caches, after keys and values came into some cells of theirs."""
    key, value, _, caches, scales = _to_store(run, None)
    anaphora_kernels.kv_store(key, value, *caches, _cells(run), **scales, implementation=run.implementation)
    return caches


def store_fp8(run: Run) -> list[Tensor]:
    """The same, of FP8."""
    key, value, _, caches, scales = _to_store(run, FP8)
    anaphora_kernels.kv_store(key, value, *caches, _cells(run), **scales, implementation=run.implementation)
    return caches


def rope_store(run: Run) -> list[Tensor]:
    """Rotated queries, and the caches."""
    key, value, (query, cos, sin), caches, scales = _to_store(run, None)
    name = run.implementation
    anaphora_kernels.rope_kv_store(query, key, value, cos, sin, *caches, _cells(run), **scales, implementation=name)
    return [query, *caches]


def rope_store_fp8(run: Run) -> list[Tensor]:
    """The same, of FP8."""
    key, value, (query, cos, sin), caches, scales = _to_store(run, FP8)
    name = run.implementation
    anaphora_kernels.rope_kv_store(query, key, value, cos, sin, *caches, _cells(run), **scales, implementation=name)
    return [query, *caches]


def _to_store(
    run: Run, cache_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor], list[Tensor], dict[str, Tensor]]:
    """Keys and values, a query and its angles, two caches, and the scales of FP8."""
    random, config = run.inputs(), run.config
    query, key, value = (random(T, n, config.head_dim) for n in (config.num_heads, *[config.num_kv_heads] * 2))
    cos, sin = random(T, config.head_dim // 2), random(T, config.head_dim // 2)
    caches = [random(5, BLOCK_SIZE, config.num_kv_heads, config.head_dim) for _ in range(2)]
    scales = {}
    if cache_dtype is not None:
        caches = [cache.to(cache_dtype) for cache in caches]
        for name in ("key_scale", "value_scale"):
            scales[name] = random(config.num_kv_heads).float().abs() + 0.5
    return key, value, (query, cos, sin), caches, scales


def _cells(run: Run) -> Tensor:
    return torch.randperm(80, generator=torch.Generator().manual_seed(0))[:T].to(run.device)


def quantize(run: Run) -> list[Tensor]:
    """What FP8 activations stand for, with a scale per token and with a given one."""
    x, results = run.inputs()(T, run.config.hidden_size), []
    for scale in (None, torch.tensor(0.01, device=run.device)):
        values, scales = anaphora_kernels.quantize_fp8(x, scale, implementation=run.implementation)
        results.append(values.float() * scales)
    return results


def product_fp8(run: Run) -> list[Tensor]:
    """Products in FP8, with dynamic and with static activations, with a bias and without."""
    random, config = run.inputs(), run.config
    x, bias = random(T, config.hidden_size), random(config.intermediate_size)
    weight = random(config.intermediate_size, config.hidden_size).float()  # the same, whatever is computed in
    values, scales = anaphora_kernels.quantize_fp8(weight, implementation="reference")
    scales /= config.hidden_size**0.5
    results = []
    for scale in (None, torch.tensor(0.01, device=run.device)):
        for added in (None, bias):
            out = anaphora_kernels.linear_fp8(
                x, values, scales.flatten(), added, input_scale=scale, implementation=run.implementation
            )
            results.append(out)
    return results


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


def gates(run: Run) -> list[Tensor]:
    """Of both kinds of MLP."""
    gate_up = run.inputs()(T, 2 * run.config.intermediate_size)
    name = run.implementation
    return [anaphora_kernels.gate_mul(gate_up, activation, implementation=name) for activation in ("silu", "gelu")]


def sample(run: Run) -> list[Tensor]:
    """Greedy rows and random ones in turns, by each truncation and by all, with biases and penalties and without.

    Tokens, and their log-probabilities.
    """
    logits = run.inputs()(ROWS, run.config.vocab_size) * 4
    with run.device:
        ints, halves = torch.arange(9), torch.full((9,), 0.5)
        cuts = {"top_k": ints + 42, "top_p": halves + 0.4, "min_p": halves / 10, "typical_p": halves + 0.3}
        bias = LogitBias(rows=torch.arange(ROWS), tokens=torch.arange(ROWS) * 3, values=torch.linspace(-5, 20, ROWS))
        seen = torch.arange(run.config.vocab_size).expand(ROWS, -1) % 7 == 0
        penalties = Penalties(
            rows=torch.arange(ROWS),
            slots=torch.arange(ROWS).flip(0),
            seen=seen.contiguous(),
            output_counts=seen.int() * 2,
            repetition=torch.full((ROWS,), 1.3),
            frequency=torch.full((ROWS,), 0.2),
            presence=torch.full((ROWS,), 0.5),
        )
        results = []
        for names in ((), *((name,) for name in cuts), tuple(cuts)):
            chosen = {name: cuts[name] for name in names}
            random_rows = RandomRows(ints * 2, halves + 0.3, ints, ints, max_top_k=50 * ("top_k" in names), **chosen)
            for metadata in (SamplingMetadata(random=random_rows), SamplingMetadata(bias, penalties, random_rows)):
                samples = anaphora_kernels.sampling(logits, metadata, implementation=run.implementation)
                results += [samples.tokens, samples.logprobs]
    return results


# (op, dtype of its cache if it is another, the check)
# Rotated keys that differ by the rounding of their dtype may differ by one of FP8 in the cache: see `compare`.
ROUNDED_TWICE = (rope_store_fp8,)
CHECKS: tuple[tuple[str, torch.dtype | None, Check], ...] = (
    ("paged_attention", None, attention),
    ("paged_attention", FP8, attention_fp8),
    ("rope", None, rotation),
    ("kv_store", None, store),
    ("kv_store", FP8, store_fp8),
    ("rope_kv_store", None, rope_store),
    ("rope_kv_store", FP8, rope_store_fp8),
    ("copy_blocks", None, copies),
    ("rms_norm", None, norm),
    ("gate_mul", None, gates),
    ("quantize_fp8", None, quantize),
    ("linear_fp8", None, product_fp8),
    ("sampling", None, sample),
)
