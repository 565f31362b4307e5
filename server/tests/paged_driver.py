"""Drives a model as the worker does, with a paged KV cache and several rows to a step, in as few lines as show it."""

from dataclasses import dataclass, field

import torch
from anaphora.context import ForwardContext, SampledTokens
from anaphora.kv_cache import KvCache
from anaphora.models import CausalLM
from anaphora_kernels import AttentionMetadata, kv_indices
from torch import Tensor

BLOCK_SIZE = 16


@dataclass
class Row:
    """A sequence: its blocks, and how much of it is in the cache."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0


class Driver:
    """A pool full of NaN, blocks handed out in an order of no use to anybody."""

    def __init__(self, model: CausalLM, num_blocks: int = 400) -> None:
        self.model = model
        self.cache = KvCache(model.kv_layout, num_blocks, BLOCK_SIZE, torch.device("cpu"))
        self.cache.pool.fill_(float("nan"))
        self.free = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0)).tolist()

    @torch.inference_mode()
    def step(self, batch: list[tuple[Row, list[int]]], *, ends_only: bool = False) -> Tensor:
        """Computes the next tokens of each row, and returns the logits after all of them: [T, vocab] float32.

        `ends_only`: the logits after the last token of each row alone, [rows, vocab].
        """
        for row, tokens in batch:
            row.length += len(tokens)
            while len(row.blocks) * BLOCK_SIZE < row.length:
                row.blocks.append(self.free.pop())
        counts = [len(tokens) for _, tokens in batch]
        contexts = [row.length for row, _ in batch]
        tables = torch.zeros(len(batch), max(len(row.blocks) for row, _ in batch), dtype=torch.int32)
        for index, (row, _) in enumerate(batch):
            tables[index, : len(row.blocks)] = torch.tensor(row.blocks, dtype=torch.int32)
        positions = torch.cat([torch.arange(c - n, c) for n, c in zip(counts, contexts, strict=True)])
        token_rows = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(counts))
        context = ForwardContext(
            attention=AttentionMetadata.build(tables, counts, contexts),
            kv_indices=kv_indices(tables, token_rows, positions, BLOCK_SIZE),
            sampled=SampledTokens(
                torch.tensor(counts).cumsum(0) - 1, AttentionMetadata.build(tables, [1] * len(batch), contexts)
            )
            if ends_only
            else None,
        )
        tokens = torch.tensor([token for _, tokens in batch for token in tokens])
        hidden = self.model.forward(tokens, self.model.angles(positions), context, self.cache)
        return self.model.compute_logits(hidden).float()

    def prompt_logits(self, prompt: list[int], chunk: int) -> Tensor:
        """The logits after every token of a prompt, computed in chunks: [len(prompt), vocab]."""
        row = Row()
        return torch.cat([self.step([(row, prompt[i : i + chunk])]) for i in range(0, len(prompt), chunk)])

    def greedy(self, prompts: list[list[int]], num_tokens: int, chunk: int) -> list[list[int]]:
        """Continues all prompts together; while long ones are still read in chunks, short ones already decode."""
        rows = [Row() for _ in prompts]
        outputs: list[list[int]] = [[] for _ in prompts]
        while any(len(output) < num_tokens for output in outputs):
            batch, owners = [], []
            for index, (row, prompt, output) in enumerate(zip(rows, prompts, outputs, strict=True)):
                if len(output) < num_tokens:
                    batch.append((row, prompt[row.length : row.length + chunk] or output[-1:]))
                    owners.append(index)
            tokens = self.step(batch, ends_only=True).argmax(-1).tolist()
            for index, token in zip(owners, tokens, strict=True):
                if rows[index].length >= len(prompts[index]):
                    outputs[index].append(token)
        return outputs
