"""sampling on a CPU, by `kernels/native`: a pass over the row for each stage that it needs, and no sort of it."""

import torch
from anaphora import _native
from torch import Tensor

from anaphora_kernels.native_dtypes import NUMBERS
from anaphora_kernels.sampling import Samples, SamplingMetadata, reference


def sampling(logits: Tensor, metadata: SamplingMetadata) -> Samples:
    """See `anaphora_kernels.sampling`. What few ask for, biases, penalties and typical-p, is the reference's."""
    random = metadata.random
    if random is not None and random.typical_p is not None:
        return reference.sampling(logits, metadata)
    scores = None
    if metadata.bias is not None or metadata.penalties is not None:
        scores = logits.float()
        if metadata.bias is not None:
            scores = reference.add_bias(scores, metadata.bias)
        if metadata.penalties is not None:
            scores = reference.apply_penalties(scores, metadata.penalties)
        scores = scores.contiguous()
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, vocab_size = logits.shape
    tokens, logprobs = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.float32)
    top = top_tokens = top_logprobs = None
    if metadata.top_rows is not None:
        shape = (len(metadata.top_rows), metadata.num_top)
        top_tokens, top_logprobs = torch.empty(shape, dtype=torch.int64), torch.empty(shape, dtype=torch.float32)
        top = (shape[0], metadata.top_rows.data_ptr(), shape[1], top_tokens.data_ptr(), top_logprobs.data_ptr())
    random_rows = truncations = None
    if random is not None:
        random_rows = (
            len(random.temperature),
            _address(random.rows),
            random.temperature.data_ptr(),
            random.seeds.data_ptr(),
            random.num_generated.data_ptr(),
        )
        truncations = (_address(random.top_k), _address(random.top_p), _address(random.min_p))
    _native.sample(
        (NUMBERS[logits.dtype], logits.data_ptr(), logits.stride(0)),
        _address(scores),
        rows,
        vocab_size,
        random_rows,
        truncations or (None, None, None),
        top,
        (tokens.data_ptr(), logprobs.data_ptr()),
    )
    return Samples(tokens, logprobs, top_tokens, top_logprobs)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
