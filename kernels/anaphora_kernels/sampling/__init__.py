"""Choosing the next token of every row of a batch, in one pass over all rows.

    logits [R, vocab] --bias--penalties--> greedy rows: argmax
                                       `-> random rows: temperature, top-k, top-p, min-p, typical-p, then inverse CDF

The order of the stages is that of `transformers` (`GenerationMixin._get_logits_processor`: sequence bias, repetition
penalty, minimum of new tokens, temperature, top-k, top-p, min-p, typical-p; frequency and presence penalties, which it
lacks, follow the repetition penalty as in vLLM's `apply_penalties`). Truncations keep every token that ties with the
last one kept. A stage that no row uses is None, and costs nothing: the host knows.

Randomness is one number per row, from a hash of (seed, number of tokens generated so far): neither the other rows of
the batch nor the slot can change what a row draws. Log-probabilities are those of the unmodified logits, at
temperature 1.
"""

from dataclasses import dataclass

from torch import Tensor

from anaphora_kernels import registry


@dataclass(frozen=True)
class LogitBias:
    """`values[i]` is added to `logits[rows[i], tokens[i]]`; -inf forbids a token (all penalties keep it so)."""

    rows: Tensor  # [n] int64, into the batch
    tokens: Tensor  # [n] int64
    values: Tensor  # [n] float32; several for one (row, token) add up


@dataclass(frozen=True)
class Penalties:
    """The rows that some penalty changes, and what they have seen. A penalty that no row uses is None."""

    rows: Tensor  # [n] int64, into the batch
    slots: Tensor  # [n] int64, into `seen` and `output_counts`
    seen: Tensor  # [slots, vocab] bool: the token is in the prompt or in the output
    output_counts: Tensor  # [slots, vocab] int32
    repetition: Tensor | None = None  # [n] float32 > 0, if seen (Keskar et al. 2019, arXiv:1909.05858); 1: off
    frequency: Tensor | None = None  # [n] float32, once per occurrence in the output; 0: off
    presence: Tensor | None = None  # [n] float32, once if it occurs in the output; 0: off


@dataclass(frozen=True)
class RandomRows:
    """The rows that do not take the likeliest token. A truncation is None if no row uses it."""

    rows: Tensor | None  # [n] int64, into the batch; None: all of them, in order
    temperature: Tensor  # [n] float32 > 0
    seeds: Tensor  # [n] int64 (any 64 bits)
    num_generated: Tensor  # [n] int64: tokens that the sequence sampled before this one
    top_k: Tensor | None = None  # [n] int64 >= 1; vocab: off
    max_top_k: int = 0  # the largest of top_k that is not off, on the host
    top_p: Tensor | None = None  # [n] float32 in (0, 1]; 1: off (Holtzman et al. 2019, arXiv:1904.09751)
    min_p: Tensor | None = None  # [n] float32 in [0, 1]; 0: off (Nguyen et al. 2024, arXiv:2407.01082)
    typical_p: Tensor | None = None  # [n] float32 in (0, 1]; 1: off (Meister et al. 2022, arXiv:2202.00666)


@dataclass(frozen=True)
class SamplingMetadata:
    """How the rows of one batch choose. With every field at its default, all rows are greedy."""

    bias: LogitBias | None = None
    penalties: Penalties | None = None
    random: RandomRows | None = None
    top_rows: Tensor | None = None  # [m] int64: the rows that want alternatives
    num_top: int = 0  # how many, at most vocab


@dataclass(frozen=True)
class Samples:
    """What was chosen."""

    tokens: Tensor  # [R] int64
    logprobs: Tensor  # [R] float32
    top_tokens: Tensor | None  # [m, num_top] int64, likeliest first; None without top_rows
    top_logprobs: Tensor | None  # [m, num_top] float32


def sampling(
    logits: Tensor,  # [R, vocab], R >= 1; not changed
    metadata: SamplingMetadata,
    *,
    implementation: str | None = None,
) -> Samples:
    """One token for each row of `logits`."""
    run = registry.select("sampling", logits.device.type, logits.dtype, implementation)
    samples: Samples = run(logits, metadata)
    return samples
