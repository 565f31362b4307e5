"""copy_blocks in Triton: one launch for all layers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # words


def copy_blocks(pool: Tensor, sources: Tensor, destinations: Tensor) -> None:
    """See `anaphora_kernels.copy_blocks`."""
    if sources.numel() == 0:
        return
    words = pool.flatten(3)  # [layers, 2, blocks, elements]
    for word in (torch.int64, torch.int32, torch.int16, torch.uint8):
        if words.shape[3] * pool.element_size() % word.itemsize == 0:
            words = words.view(word)
            break
    layers, _, num_blocks, block_words = words.shape
    copy_words[(triton.cdiv(block_words, BLOCK), layers * 2, sources.numel())](
        words, sources, destinations, num_blocks, block_words, BLOCK=BLOCK, num_warps=4
    )


@triton.jit
def copy_words(pool, sources, destinations, num_blocks, block_words, BLOCK: tl.constexpr):
    """A part of one block in the keys or values of one layer."""
    word = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    layer = pool + tl.program_id(1).to(tl.int64) * num_blocks * block_words
    source = tl.load(sources + tl.program_id(2)) * block_words
    destination = tl.load(destinations + tl.program_id(2)) * block_words
    mask = word < block_words
    tl.store(layer + destination + word, tl.load(layer + source + word, mask=mask), mask=mask)
