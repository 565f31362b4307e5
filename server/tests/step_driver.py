"""A router in miniature: makes the steps of a few sequences, and collects what comes back.

It plans as the real one does: a decoding row says "continue", and never waits for the token that it continues with, so
that steps can be in flight two at a time.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from anaphora.wire import BlockTableDelta, Limits, RowStart, Sampling, Step, StepResult


class Pending(Protocol):
    def result(self) -> StepResult: ...


Execute = Callable[[Step], Pending]


def u32(values: object) -> np.ndarray:
    return np.array(values, np.uint32)


@dataclass(eq=False)
class Sequence:
    """What a client asked for, and what has come of it."""

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    outputs: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    slot: int = -1
    blocks: list[int] = field(default_factory=list)
    num_sent_blocks: int = 0  # known to the shard
    num_computed: int = 0  # tokens whose keys and values are in the cache, once all planned steps are done
    num_planned_samples: int = 0
    num_to_prefill: int = 0  # tokens that are known before the first new one is sampled

    @property
    def is_planned(self) -> bool:
        return self.num_planned_samples == self.max_new_tokens


class StepDriver:
    """Slots, blocks and step ids of one Execute stream."""

    def __init__(self, limits: Limits, num_blocks: int, seed: int = 0) -> None:
        self.limits = limits
        self.step_id = 0
        self.free_blocks = random.Random(seed).sample(range(num_blocks), num_blocks)
        self.free_slots = list(range(limits.max_rows))
        self.finished: list[int] = []
        self.started: list[RowStart] = []
        self.copies: list[tuple[int, int]] = []

    def start(self, sequence: Sequence) -> None:
        """Gives a sequence a slot. What it has in `outputs` already (it was preempted) is computed again."""
        sequence.slot = self.free_slots.pop(0)
        sequence.num_planned_samples = len(sequence.outputs)
        known = sequence.prompt + sequence.outputs
        sequence.num_to_prefill = len(known)
        self.started.append(
            RowStart(
                sequence.slot,
                sequence.sampling,
                num_generated=len(sequence.outputs),
                history=u32(known if sequence.sampling.needs_history else []),
                num_prompt_tokens=len(sequence.prompt) if sequence.sampling.needs_history else 0,
            )
        )

    def finish(self, sequence: Sequence) -> None:
        """Takes slot and blocks back."""
        self.finished.append(sequence.slot)
        self.free_slots.append(sequence.slot)
        self.free_blocks.extend(sequence.blocks)
        sequence.blocks, sequence.num_sent_blocks, sequence.num_computed, sequence.slot = [], 0, 0, -1

    def plan(self, sequences: list[Sequence], chunk: int) -> tuple[Step, list[Sequence]]:
        """A step with a row for each sequence, and the sequences that sample in it."""
        self.step_id += 1
        rows: list[tuple[int, int, int, bool, bool]] = []
        tokens: list[int] = []
        deltas, sampling = [], []
        for sequence in sequences:
            known = sequence.prompt + sequence.outputs
            decodes = sequence.num_computed >= sequence.num_to_prefill
            given = [] if decodes else known[sequence.num_computed : sequence.num_computed + chunk]
            num_tokens = len(given) or 1
            samples = sequence.num_computed + num_tokens >= sequence.num_to_prefill
            rows.append((sequence.slot, sequence.num_computed, num_tokens, samples, bool(given)))
            tokens += given
            sequence.num_computed += num_tokens
            while len(sequence.blocks) * self.limits.block_size < sequence.num_computed:
                sequence.blocks.append(self.free_blocks.pop())
            if sequence.num_sent_blocks < len(sequence.blocks):
                start = sequence.num_sent_blocks
                deltas.append(BlockTableDelta(sequence.slot, start, u32(sequence.blocks[start:])))
                sequence.num_sent_blocks = len(sequence.blocks)
            if samples:
                sequence.num_planned_samples += 1
                sampling.append(sequence)
        slots, positions, lengths, flags, given_flags = zip(*rows, strict=True)
        step = Step(
            id=self.step_id,
            finished=u32(self.finished),
            started=tuple(self.started),
            block_tables=tuple(deltas),
            block_copies=u32(self.copies).reshape(-1, 2),
            slots=u32(slots),
            positions=u32(positions),
            num_tokens=u32(lengths),
            samples=np.array(flags),
            has_tokens=np.array(given_flags),
            tokens=u32(tokens),
        )
        self.finished, self.started, self.copies = [], [], []
        return step, sampling

    def run(self, execute: Execute, sequences: list[Sequence], *, chunk: int = 16, in_flight: int = 1) -> None:
        """Generates until every sequence has all its tokens; as many at once as there are slots."""
        waiting, running = deque(sequences), list[Sequence]()
        flying: deque[tuple[Pending, list[Sequence]]] = deque()
        while waiting or running or flying:
            while waiting and self.free_slots:
                running.append(waiting.popleft())
                self.start(running[-1])
            if running and len(flying) < in_flight:
                step, sampling = self.plan(running, chunk)
                flying.append((execute(step), sampling))
                running = [sequence for sequence in running if not sequence.is_planned]
                if len(flying) < in_flight:
                    continue
            pending, sampling = flying.popleft()
            collect(pending.result(), sampling)
            for sequence in sampling:
                if len(sequence.outputs) == sequence.max_new_tokens:
                    self.finish(sequence)


def collect(result: StepResult, sampling: list[Sequence]) -> None:
    """Gives the tokens to their sequences."""
    for sequence, token, logprob in zip(sampling, result.tokens.tolist(), result.logprobs.tolist(), strict=True):
        sequence.outputs.append(token)
        sequence.logprobs.append(logprob)
