"""The forward pass of a worker on a CPU as one call: see `anaphora_kernels.recording`."""

from dataclasses import replace

import torch
from anaphora_kernels import AttentionMetadata
from anaphora_kernels.paged_attention.cpu import plan_for
from anaphora_kernels.recording import RECORDED_TOKENS, NotRecordableError, Recording
from torch import Tensor

from anaphora.batch import HostLengths, Inputs, Layout, Slots
from anaphora.context import ForwardContext, SampledTokens
from anaphora.kv_cache import KvCache
from anaphora.models import CausalLM


class RecordedPass:
    """A model's forward pass over one KV pool, recorded."""

    def __init__(self, model: CausalLM, kv_cache: KvCache, slots: Slots) -> None:
        """Raises NotRecordableError if the model computes something by torch itself."""
        max_tokens = max(slots.limits.max_step_tokens, RECORDED_TOKENS)
        self._model = model
        self._slots = slots
        self._tokens = torch.zeros(max_tokens, dtype=torch.int64)
        self._kv_indices = torch.full((max_tokens,), slots.scratch_cell)
        self._angles = model.angles(torch.zeros(max_tokens, dtype=torch.int64))

        # Rows of one token each, in the scratch block.
        attention = AttentionMetadata.build(
            torch.full((RECORDED_TOKENS, 1), slots.num_blocks, dtype=torch.int32),
            [1] * RECORDED_TOKENS,
            [1] * RECORDED_TOKENS,
        )
        sampled = SampledTokens(torch.arange(RECORDED_TOKENS), replace(attention, plans={}))
        context = ForwardContext(attention, self._kv_indices[:RECORDED_TOKENS], sampled=sampled)

        def launch() -> Tensor:
            first = [(cos[:RECORDED_TOKENS], sin[:RECORDED_TOKENS]) for cos, sin in self._angles]
            return model.forward(self._tokens[:RECORDED_TOKENS], first, context, kv_cache)

        self._recording = Recording(launch, max_tokens)
        self._plans, self._sampled_plans = list(attention.plans), list(sampled.attention.plans)
        self._hidden = self._recording.whole(self._recording.result)

    @classmethod
    def of(cls, model: CausalLM, kv_cache: KvCache, slots: Slots) -> "RecordedPass | None":
        """None for a model that cannot be recorded."""
        try:
            return cls(model, kv_cache, slots)
        except NotRecordableError:
            return None

    def run(self, inputs: Inputs, layout: Layout) -> Tensor:
        """Hidden states [S, hidden] of what samples, valid until the next run."""
        token_ids, context = self._slots.resolve(inputs, HostLengths.of(layout))
        num_tokens = len(token_ids)
        self._tokens[:num_tokens] = token_ids
        self._kv_indices[:num_tokens] = inputs.kv_indices
        for to, angles in zip(self._angles, self._model.angles(inputs.positions), strict=True):
            for part, values in zip(to, angles, strict=True):
                part[:num_tokens] = values
        self._recording.run(num_tokens, [plan_for(context.attention, key) for key in self._plans])
        num_sampled = len(inputs.sample_indices)
        if num_sampled > 0:
            attention = context.sampled.attention if context.sampled else context.attention
            plans = [plan_for(attention, key) for key in self._sampled_plans]
            self._recording.run_selected(inputs.sample_indices, plans)
        return self._hidden[:num_sampled]
