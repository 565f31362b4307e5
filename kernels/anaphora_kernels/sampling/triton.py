"""sampling in Triton: two launches for greedy rows, a third for random rows, one more for bias and for penalties each.

    add_biases, penalise    only if used, on a float32 copy of the logits
    summarise               rows x chunks: the largest score and its token, the largest logit and the sum around it
    choose                  rows: normaliser, the likeliest token and its log-probability
    draw                    random rows: truncation without a sort, then inversion of the cumulative distribution

What a truncation keeps is "all tokens with a score of at least t". `draw` finds t by bisection over the bits of a
float32, in the few tokens that can matter, which one pass over the vocabulary has collected: for top-k those not below
the k-th largest of the maxima of 128 tokens each (at least k tokens are not); for top-p those that are not so unlikely
that all of them together could be spared. If they are too many for the buffer, it bisects over the whole row.

A token's weight is exp(score - largest) as an integer, in units of 2^-40. Sums of integers do not depend on their
order, so that neither the batch nor the card changes a draw.
"""

import torch
import triton
from torch import Tensor

from anaphora_kernels.sampling import LogitBias, Penalties, RandomRows, Samples, SamplingMetadata
from anaphora_kernels.sampling.triton_kernels import GROUP, add_biases, choose, draw, penalise, summarise

CHUNK = 4096  # tokens that one program summarises; a multiple of GROUP
MAX_CANDIDATES = 8192  # tokens of a row, above which it is not worth while to copy them


def sampling(logits: Tensor, metadata: SamplingMetadata) -> Samples:
    """See `anaphora_kernels.sampling`."""
    logits = logits.contiguous()
    num_rows, vocab = logits.shape
    scores = logits
    if metadata.bias is not None or metadata.penalties is not None:
        scores = logits.to(torch.float32, copy=True)
    if metadata.bias is not None:
        _add_biases(scores, metadata.bias)
    if metadata.penalties is not None:
        _penalise(scores, metadata.penalties)

    device, chunks = logits.device, triton.cdiv(vocab, CHUNK)
    floats = torch.empty((3, num_rows, chunks), dtype=torch.float32, device=device)
    best_tokens = torch.empty((num_rows, chunks), dtype=torch.int32, device=device)
    maxima = torch.empty((num_rows, chunks * (CHUNK // GROUP)), dtype=torch.float32, device=device)
    summarise[(chunks, num_rows)](
        logits, scores, *floats, best_tokens, maxima, vocab, BLOCK=CHUNK, IS_SAME=scores is logits, num_warps=4
    )
    tokens = torch.empty(num_rows, dtype=torch.int64, device=device)
    logprobs, normalizers = torch.empty((2, num_rows), dtype=torch.float32, device=device)
    block_c = max(2, triton.next_power_of_2(chunks))
    choose[(num_rows,)](
        logits, *floats, best_tokens, tokens, logprobs, normalizers, vocab, chunks, BLOCK_C=block_c, num_warps=1
    )
    if metadata.random is not None:
        _draw(logits, scores, maxima, metadata.random, tokens, logprobs, normalizers)

    top_tokens = top_logprobs = None
    if metadata.top_rows is not None:
        top_logits, top_tokens = logits[metadata.top_rows].float().topk(metadata.num_top, dim=-1)
        top_logprobs = top_logits - normalizers[metadata.top_rows].unsqueeze(1)
    return Samples(tokens, logprobs, top_tokens, top_logprobs)


def _add_biases(scores: Tensor, bias: LogitBias) -> None:
    count, vocab = bias.rows.numel(), scores.shape[1]
    if count > 0:
        add_biases[(triton.cdiv(count, 256),)](
            scores, bias.rows, bias.tokens, bias.values, count, vocab, BLOCK=256, num_warps=4
        )


def _penalise(scores: Tensor, penalties: Penalties) -> None:
    count, vocab = penalties.rows.numel(), scores.shape[1]
    if count > 0:
        penalise[(triton.cdiv(vocab, CHUNK), count)](
            scores,
            penalties.rows,
            penalties.slots,
            penalties.seen.view(torch.uint8),
            penalties.output_counts,
            penalties.repetition,
            penalties.frequency,
            penalties.presence,
            vocab,
            BLOCK=CHUNK,
            num_warps=4,
        )


def _draw(
    logits: Tensor,
    scores: Tensor,
    maxima: Tensor,
    random: RandomRows,
    tokens: Tensor,
    logprobs: Tensor,
    normalizers: Tensor,
) -> None:
    count, vocab, device = random.temperature.numel(), scores.shape[1], scores.device
    values = torch.empty((count, MAX_CANDIDATES), dtype=torch.float32, device=device)
    candidates = torch.empty((count, MAX_CANDIDATES), dtype=torch.int32, device=device)
    draw[(count,)](
        logits,
        scores,
        maxima,
        random.rows,
        random.temperature,
        random.seeds,
        random.num_generated,
        random.top_k,
        random.top_p,
        random.min_p,
        random.typical_p,
        values,
        candidates,
        tokens,
        logprobs,
        normalizers,
        vocab,
        maxima.shape[1],
        random.max_top_k,
        MAX_CANDIDATES=MAX_CANDIDATES,
        BLOCK=CHUNK,
        num_warps=8,
    )
