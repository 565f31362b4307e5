"""sampling in plain torch: the specification. Each stage is a function over a batch of rows, logits to logits."""

import numpy as np
import torch
from torch import Tensor

from anaphora_kernels.sampling import LogitBias, Penalties, RandomRows, Samples, SamplingMetadata

_REMOVED = -torch.inf


def sampling(logits: Tensor, metadata: SamplingMetadata) -> Samples:
    """See `anaphora_kernels.sampling`."""
    logits = logits.float()
    scores = logits
    if metadata.bias is not None:
        scores = add_bias(scores, metadata.bias)
    if metadata.penalties is not None:
        scores = apply_penalties(scores, metadata.penalties)

    random = metadata.random
    if random is None:
        tokens = scores.argmax(dim=-1)
    elif random.rows is None:
        tokens = draw(truncate(scores, random), uniform(random.seeds, random.num_generated))
    else:
        tokens = scores.argmax(dim=-1)
        chosen = draw(truncate(scores[random.rows], random), uniform(random.seeds, random.num_generated))
        tokens.index_copy_(0, random.rows, chosen)

    normalizers = logits.logsumexp(dim=-1, keepdim=True)
    logprobs = (logits.gather(1, tokens.unsqueeze(1)) - normalizers).squeeze(1)
    top_tokens = top_logprobs = None
    if metadata.top_rows is not None:
        top_logits, top_tokens = logits[metadata.top_rows].topk(metadata.num_top, dim=-1)
        top_logprobs = top_logits - normalizers[metadata.top_rows]
    return Samples(tokens, logprobs, top_tokens, top_logprobs)


def add_bias(logits: Tensor, bias: LogitBias) -> Tensor:
    """logits [R, vocab] with the biases added."""
    return logits.index_put((bias.rows, bias.tokens), bias.values, accumulate=True)


def apply_penalties(logits: Tensor, penalties: Penalties) -> Tensor:
    """logits [R, vocab] with the penalised rows replaced."""
    scores = logits[penalties.rows]
    if penalties.repetition is not None:
        repetition = penalties.repetition.unsqueeze(1)
        repeated = torch.where(scores < 0, scores * repetition, scores / repetition)
        scores = torch.where(penalties.seen[penalties.slots], repeated, scores)
    if penalties.frequency is not None:
        scores = scores - penalties.output_counts[penalties.slots] * penalties.frequency.unsqueeze(1)
    if penalties.presence is not None:
        scores = scores - (penalties.output_counts[penalties.slots] > 0) * penalties.presence.unsqueeze(1)
    return logits.index_copy(0, penalties.rows, scores)


def truncate(logits: Tensor, random: RandomRows) -> Tensor:
    """logits [n, vocab] at each row's temperature, with what the row must not draw at -inf."""
    scores = logits / random.temperature.unsqueeze(1)
    if random.top_k is not None:
        scores = keep_top_k(scores, random.top_k, random.max_top_k)
    if random.top_p is not None:
        scores = keep_top_p(scores, random.top_p)
    if random.min_p is not None:
        scores = keep_min_p(scores, random.min_p)
    if random.typical_p is not None:
        scores = keep_typical_p(scores, random.typical_p)
    return scores


def keep_top_k(logits: Tensor, top_k: Tensor, max_top_k: int) -> Tensor:
    """Keeps the `top_k` likeliest tokens of each row; rows with top_k > max_top_k keep all."""
    likeliest = logits.topk(max_top_k, dim=-1).values
    last_kept = likeliest.gather(1, (top_k - 1).clamp(max=max_top_k - 1).unsqueeze(1))
    last_kept = last_kept.masked_fill((top_k > max_top_k).unsqueeze(1), _REMOVED)
    return logits.masked_fill(logits < last_kept, _REMOVED)


def keep_top_p(logits: Tensor, top_p: Tensor) -> Tensor:
    """Keeps the smallest set of likeliest tokens with at least `top_p` of the probability; rows with 1 keep all."""
    descending = _sort_descending(logits)
    probabilities = descending.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1, dtype=torch.float64) - probabilities  # of all that is likelier
    num_kept = (before < top_p.unsqueeze(1)).sum(dim=-1, keepdim=True).clamp_(min=1)
    last_kept = descending.gather(1, num_kept - 1).masked_fill((top_p >= 1).unsqueeze(1), _REMOVED)
    return logits.masked_fill(logits < last_kept, _REMOVED)


def keep_min_p(logits: Tensor, min_p: Tensor) -> Tensor:
    """Keeps the tokens that are at least `min_p` times as likely as the likeliest; rows with 0 keep all."""
    last_kept = logits.amax(dim=-1, keepdim=True) + min_p.log().unsqueeze(1)
    return logits.masked_fill(logits < last_kept, _REMOVED)


def keep_typical_p(logits: Tensor, typical_p: Tensor) -> Tensor:
    """Keeps the tokens whose surprise is nearest to the row's entropy, up to `typical_p` of the mass; 1 keeps all."""
    logprobs = logits.log_softmax(dim=-1)
    probabilities = logprobs.exp()
    entropy = -(logprobs * probabilities).nansum(dim=-1, keepdim=True)
    distance = (logprobs + entropy).abs()  # inf where removed
    ascending, order = distance.sort(dim=-1)
    mass = probabilities.gather(1, order).cumsum(dim=-1, dtype=torch.float64)
    num_kept = ((mass < typical_p.unsqueeze(1)).sum(dim=-1, keepdim=True) + 1).clamp_(max=logits.shape[-1])
    last_kept = ascending.gather(1, num_kept - 1).masked_fill((typical_p >= 1).unsqueeze(1), torch.inf)
    return logits.masked_fill(distance > last_kept, _REMOVED)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """A token for each row [n, vocab], by inversion of its cumulative distribution at `uniforms` [n] in [0, 1)."""
    # Double precision: a float32 sum over a large vocabulary would lose the unlikely tokens.
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    targets = uniforms.unsqueeze(1) * cumulative[:, -1:]
    # The first token whose cumulative probability exceeds the target: never one of probability 0. (Clamped for NaN.)
    return torch.searchsorted(cumulative, targets, right=True).squeeze(1).clamp_(max=logits.shape[-1] - 1)


_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def uniform(seeds: Tensor, counters: Tensor) -> Tensor:
    """[n] float64 in [0, 1), a function of (seed, counter) [n] int64 each, and of nothing else.

    Two rounds of splitmix64's finaliser (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195), the second keyed by the
    first. torch has no unsigned 64-bit arithmetic: multiplication wraps all the same, and shifts are masked.
    """
    bits = _mix(_mix(seeds + _signed(_GOLDEN)) + counters * _signed(_GOLDEN))
    return _shift_right(bits, 11).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX_2)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, num_bits: int) -> Tensor:
    return (x >> num_bits) & ((1 << (64 - num_bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant


def _sort_descending(x: Tensor) -> Tensor:
    """The values of each row, largest first."""
    if x.device.type == "cpu":
        # numpy sorts a vocabulary of float32 with SIMD in 0.3 ms, torch in 4.7 ms (torch 2.15, numpy 2.4, AVX2).
        return torch.from_numpy(np.sort(x.numpy(), axis=-1)).flip(-1)
    return x.sort(dim=-1, descending=True).values
