"""One rank: executes steps on its share of the model.

    configure(limits)   warm up at the largest step, size the KV pool, capture CUDA graphs, clear every slot
    launch(step)        enqueue everything that the step says; nothing waits for the device
      -> PendingResult    .result() waits for this step's tokens, and for nothing later

So two steps can be in flight: the second is launched while the first one's tokens are awaited. All ranks execute the
same steps; rank 0 samples, and the others take its tokens. A worker belongs to one thread, but for its results.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from anaphora_kernels import registry
from anaphora_kernels.paged_attention.shared_prefixes import MIN_SAVED_TOKENS
from torch import Tensor

from anaphora.batch import HostLengths, Inputs, Layout, Slots
from anaphora.errors import InvalidRequestError, NotConfiguredError, PoolSizeError
from anaphora.graphs import Capture, Graphs, GraphSizes
from anaphora.kv_cache import KvCache
from anaphora.loader import LoadedModel
from anaphora.memory import (
    available_host_bytes,
    choose_num_blocks,
    device_memory_bytes,
    free_cpu_bytes,
    free_cuda_bytes,
    give_back_freed_host_memory,
    reset_cuda_peak,
)
from anaphora.parallel import ParallelGroup
from anaphora.progress import Progress
from anaphora.recorded_pass import RecordedPass
from anaphora.sampler import SampledBatch, Sampler
from anaphora.staging import Download, upload
from anaphora.warm_up import warm_up_step
from anaphora.wire import NO_TOKENS, NO_VALUES, Description, Limits, Step, StepResult, TopLogprobs


@dataclass(frozen=True)
class _Configured:
    """What exists from one `Configure` to the next."""

    limits: Limits
    kv_cache: KvCache
    slots: Slots
    sampler: Sampler
    graphs: Graphs | None
    recorded_pass: RecordedPass | None


def _dtype_of(loaded: LoadedModel) -> str:
    """What is computed in: "bfloat16", or "bfloat16 (weights q4_1, q8_0)" where weights are held in something else."""
    dtype = str(loaded.dtype).removeprefix("torch.")
    others = [name for name in loaded.weight_formats if name != dtype]
    return f"{dtype} (weights {', '.join(loaded.weight_formats)})" if others else dtype


class PendingResult:
    """A launched step. `result()` may be called from another thread."""

    def __init__(self, step_id: int, sampled: SampledBatch | None, arrived_at: float, device: torch.device) -> None:
        """`sampled` is None if nothing is sampled here (ranks other than 0); `arrived_at` by `time.perf_counter`."""
        self._step_id = step_id
        self._sampled = sampled
        self._arrived_at = arrived_at
        samples = sampled.samples if sampled else None
        tensors = (samples.tokens, samples.logprobs, samples.top_tokens, samples.top_logprobs) if samples else ()
        self._download = Download([tensor for tensor in tensors if tensor is not None], device)

    def result(self) -> StepResult:
        """Waits until the step is computed, whether or not it samples: two in flight are two, and no more."""
        arrays = self._download.wait()
        top: tuple[TopLogprobs, ...] = ()
        if self._sampled is not None and len(arrays) == 4:
            rows = zip(self._sampled.top_rows.tolist(), self._sampled.num_top.tolist(), *arrays[2:], strict=True)
            top = tuple(TopLogprobs(row, tokens[:n], logprobs[:n]) for row, n, tokens, logprobs in rows)
        tokens, logprobs = arrays[:2] if arrays else (NO_TOKENS, NO_VALUES)
        duration_us = round((time.perf_counter() - self._arrived_at) * 1e6)
        return StepResult(self._step_id, tokens, logprobs, top, duration_us)


class Worker:
    """The model of one rank, and the state of its slots."""

    def __init__(
        self,
        loaded: LoadedModel,
        group: ParallelGroup,
        device: torch.device,
        progress: Progress,
        new_capture: Callable[[], Capture] | None = None,  # see graphs.graph_capture; None: no graphs
        attention_backend: str | None = None,  # see ForwardContext
    ) -> None:
        """Not configured yet. On a CPU, `available_host_bytes` is taken now: before the pool, after the weights."""
        self.loaded = loaded
        self.group = group
        self.device = device
        self._progress = progress
        self._new_capture = new_capture
        self._attention_backend = attention_backend
        self._available_bytes = available_host_bytes()
        self._configured: _Configured | None = None

    def describe(self) -> Description:
        """What this rank is."""
        config, layout = self.loaded.config, self.loaded.kv_layout
        is_cuda = self.device.type == "cuda"
        return Description(
            fingerprint=self.loaded.fingerprint,
            architecture=config.architecture,
            dtype=_dtype_of(self.loaded),
            kv_cache_dtype=str(layout.dtype).removeprefix("torch."),
            device=f"{self.device} ({torch.cuda.get_device_name(self.device)})" if is_cuda else "cpu",
            rank=self.group.rank,
            world_size=self.group.world_size,
            vocab_size=config.vocab_size,
            max_context=config.max_context,
            kv_bytes_per_token=layout.bytes_per_token,
            device_memory_bytes=device_memory_bytes(self.device),
            features=("logprobs",),
        )

    def clear(self) -> None:
        """Frees every slot; the pool stays."""
        if self._configured is not None:
            self._configured.slots.clear()

    def is_broken(self) -> bool:
        """Whether this process cannot go on after a failed step: ranks wait in a collective, or the GPU is gone."""
        if self.group.world_size > 1:
            return True
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.device)
            except RuntimeError:
                return True
        return False

    @torch.inference_mode()
    def launch(self, step: Step, arrived_at: float) -> PendingResult:
        """Executes a step. Raises InvalidStepError before anything of it has reached the device."""
        if self._configured is None:
            raise NotConfiguredError("Configure comes before Execute")
        slots, sampler, kv_cache = self._configured.slots, self._configured.sampler, self._configured.kv_cache

        slots.finish(step.finished, step.id)
        for row in step.started:
            slots.start(row.slot, step.id)
            sampler.start(row, step.id)
        slots.extend(step.block_tables, step.id)
        copies = slots.block_copies(step)
        layout = slots.lay_out(step)

        if copies is not None:
            kv_cache.copy_blocks(*copies)
        hidden, device_slots = self._compute(self._configured, layout)
        if layout.sample_slots.size == 0:
            return PendingResult(step.id, None, arrived_at, self.device)
        logits = self.loaded.model.compute_logits(hidden)

        # Every rank has the logits, but one must choose: sums in another order could choose otherwise.
        sampled = sampler.sample(logits, layout.sample_slots) if self.group.rank == 0 else None
        tokens = sampled.samples.tokens if sampled else torch.empty_like(device_slots)
        slots.remember(device_slots, self.group.broadcast(tokens))
        return PendingResult(step.id, sampled, arrived_at, self.device)

    def _compute(self, configured: _Configured, layout: Layout) -> tuple[Tensor, Tensor]:
        """The forward pass: hidden states [S, hidden] of what samples, and its slots [S]."""
        from_graph = configured.graphs.run(layout) if configured.graphs else None
        if from_graph is not None:
            return from_graph
        inputs = Inputs.of(layout, upload(layout.arrays(), self.device))
        if configured.recorded_pass is not None:
            return configured.recorded_pass.run(inputs, layout), inputs.sample_slots
        return self._forward(configured.slots, configured.kv_cache, inputs, HostLengths.of(layout)), inputs.sample_slots

    def _forward(self, slots: Slots, kv_cache: KvCache, inputs: Inputs, lengths: HostLengths) -> Tensor:
        token_ids, context = slots.resolve(inputs, lengths)
        model = self.loaded.model
        hidden = model.forward(token_ids, model.angles(inputs.positions), context, kv_cache)
        return hidden.index_select(0, inputs.sample_indices) if lengths.sampled is None else hidden

    # === configure ===

    @torch.inference_mode()
    def configure(self, limits: Limits) -> int:
        """Makes ready for steps of up to these sizes and returns the number of blocks; the same sizes keep the pool.

        Raises InvalidRequestError for a context that the model cannot represent, PoolSizeError for what does not fit.
        """
        if limits.max_context > self.loaded.config.max_context:
            raise InvalidRequestError(
                f"Configure: max_context = {limits.max_context}, but the model ends at {self.loaded.config.max_context}"
            )
        if self._configured is not None and self._configured.limits == limits:
            self._configured.slots.clear()
            return self._configured.kv_cache.num_blocks
        self._configured = None
        free_bytes = self._warm_up(limits)
        self._progress.phase("size_kv_cache", 0, 1)
        num_blocks = self._agree_on_num_blocks(limits, free_bytes)
        try:
            self._configured = self._allocate(limits, num_blocks, "size_kv_cache")
            if self.device.type == "cuda":  # what the largest step needs is taken now, and kept: no step allocates
                step, _ = warm_up_step(limits, longest_context=True, num_blocks=num_blocks)
                self.launch(step, time.perf_counter()).result()
                self._configured.slots.clear()
        except torch.OutOfMemoryError as error:
            raise PoolSizeError(f"a KV cache of {num_blocks} blocks does not fit in memory: {error}") from error
        give_back_freed_host_memory()
        self._progress.phase("size_kv_cache", 1, 1)
        return num_blocks

    def _allocate(self, limits: Limits, num_blocks: int, phase: str) -> _Configured:
        """The pool, the slots and the graphs; each graph is progress in `phase`."""
        scales = self.loaded.model.kv_scales
        kv_cache = KvCache(self.loaded.kv_layout, num_blocks, limits.block_size, self.device, scales)
        vocab_size = self.loaded.config.vocab_size
        # Kernels that graphs can capture are the same that can make use of shared prefixes.
        backend, kv_dtype = self._attention_backend, self.loaded.kv_layout.dtype
        row = registry.choose("paged_attention", self.device.type, kv_dtype, backend)
        min_shared_tokens = MIN_SAVED_TOKENS if row.capturable or self._new_capture else None
        slots = Slots(limits, num_blocks, vocab_size, self.device, min_shared_tokens, backend)
        graphs = None
        if self._new_capture is not None:
            graphs = Graphs(
                partial(self._forward, slots, kv_cache),
                self._new_capture(),
                GraphSizes.within(limits),
                slots,
                on_progress=lambda done, total: self._progress.phase(phase, done, total, "graphs"),
            )
        is_cpu = self.device.type == "cpu"
        recorded = RecordedPass.of(self.loaded.model, kv_cache, slots) if is_cpu else None
        sampler = Sampler(limits.max_rows, vocab_size, self.device)
        return _Configured(limits, kv_cache, slots, sampler, graphs, recorded)

    def _warm_up(self, limits: Limits) -> int:
        """Captures the graphs and runs the largest step, with every stage of sampling: what is left for the pool."""
        self._progress.phase("warm_up", 0, 1)
        is_cuda = self.device.type == "cuda"
        # On a GPU the longest context counts, because it may need workspace; on a CPU it would only take long.
        step, num_blocks = warm_up_step(limits, longest_context=is_cuda)
        if is_cuda:
            reset_cuda_peak(self.device)
        try:
            self._configured = self._allocate(limits, num_blocks, "warm_up")
            self.launch(step, time.perf_counter()).result()
            if is_cuda:  # the pool of the warm-up makes room for the other
                free_bytes = free_cuda_bytes(limits, self.device) + self._configured.kv_cache.pool.nbytes
            else:
                free_bytes = free_cpu_bytes(limits, self._available_bytes, self.group.world_size)
        except torch.OutOfMemoryError as error:
            raise PoolSizeError(f"a step of {limits.max_step_tokens} tokens does not fit in memory: {error}") from error
        finally:
            self._configured = None
        if is_cuda:
            torch.cuda.empty_cache()
        self._progress.phase("warm_up", 1, 1)
        return free_bytes

    def _agree_on_num_blocks(self, limits: Limits, free_bytes: int) -> int:
        """The smallest pool of all ranks, one block of which is scratch."""
        bytes_per_block = self.loaded.kv_layout.bytes_per_token * limits.block_size
        smallest = self.group.all_reduce_min(torch.tensor([free_bytes], dtype=torch.int64, device=self.device))
        return choose_num_blocks(limits, bytes_per_block, int(smallest.item()) - bytes_per_block)
