"""The sampler's state by slot: which stages a batch asks for, what penalties count, when seeds move on."""

from dataclasses import replace

import anaphora_kernels
import numpy as np
import pytest
import torch
from anaphora.errors import InvalidStepError
from anaphora.sampler import Sampler
from anaphora.wire import RowStart, Sampling
from anaphora_kernels import SamplingMetadata
from anaphora_kernels.sampling import Samples
from step_driver import u32

VOCAB = 20
CPU = torch.device("cpu")
RANDOM = Sampling(temperature=1.0, seed=7)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[SamplingMetadata]:
    """The metadata of every batch sampled."""
    batches: list[SamplingMetadata] = []
    original = anaphora_kernels.sampling

    def record(logits: torch.Tensor, metadata: SamplingMetadata) -> Samples:
        batches.append(metadata)
        return original(logits, metadata)

    monkeypatch.setattr(anaphora_kernels, "sampling", record)
    return batches


def make_sampler(*samplings: Sampling, **changes: object) -> Sampler:
    """Slot i samples by the i-th."""
    sampler = Sampler(8, VOCAB, CPU)
    for slot, sampling in enumerate(samplings):
        sampler.start(replace(RowStart(slot, sampling), **changes), 1)
    return sampler


def sample(sampler: Sampler, *slots: int, logits: torch.Tensor | None = None) -> list[int]:
    if logits is None:
        logits = torch.zeros(len(slots), VOCAB)
    return sampler.sample(logits, np.array(slots)).samples.tokens.tolist()


@pytest.mark.parametrize(
    ("sampling", "stages"),
    [
        (Sampling(), set()),
        (Sampling(temperature=1e-7, top_p=0.5), set()),
        (RANDOM, {"random"}),
        (replace(RANDOM, top_k=5), {"random", "top_k"}),
        (replace(RANDOM, top_k=VOCAB), {"random"}),
        (replace(RANDOM, top_p=0.9), {"random", "top_p"}),
        (replace(RANDOM, min_p=0.1), {"random", "min_p"}),
        (replace(RANDOM, typical_p=0.9), {"random", "typical_p"}),
        (Sampling(repetition_penalty=1.2), {"penalties"}),
        (Sampling(frequency_penalty=0.5), {"penalties"}),
        (Sampling(presence_penalty=-0.5), {"penalties"}),
        (Sampling(bias_tokens=u32([3]), bias_values=np.float32([1.0])), {"bias"}),
        (Sampling(min_new_tokens=2, stop_tokens=u32([3])), {"bias"}),
        (Sampling(min_new_tokens=2), set()),
        (Sampling(num_top_logprobs=2), {"top_rows"}),
    ],
)
def test_a_batch_asks_for_the_stages_that_its_rows_use(
    seen: list[SamplingMetadata], sampling: Sampling, stages: set[str]
) -> None:
    sample(make_sampler(Sampling(), sampling, RANDOM), 1)
    (metadata,) = seen
    used = {name for name in ("bias", "penalties", "random", "top_rows") if getattr(metadata, name) is not None}
    used |= {
        name for name in ("top_k", "top_p", "min_p", "typical_p") if getattr(metadata.random, name, None) is not None
    }
    assert used == stages


def test_rows_are_found_in_any_order(seen: list[SamplingMetadata]) -> None:
    top_k = replace(RANDOM, top_k=5)
    penalised = Sampling(repetition_penalty=2.0)
    sample(make_sampler(Sampling(), top_k, RANDOM, penalised), 3, 2, 0, 1)
    (metadata,) = seen
    assert metadata.random is not None
    assert metadata.random.rows is not None
    assert metadata.random.rows.tolist() == [1, 3]
    assert metadata.random.top_k is not None
    assert metadata.random.top_k.tolist() == [VOCAB, 5]
    assert metadata.random.max_top_k == 5
    assert metadata.penalties is not None
    assert metadata.penalties.rows.tolist() == [0]
    assert metadata.penalties.slots.tolist() == [3]


def test_a_draw_depends_on_seed_and_count_only() -> None:
    sampler = make_sampler(RANDOM, replace(RANDOM, seed=2**64 - 1), RANDOM)
    first = [sample(sampler, 0)[0] for _ in range(10)]
    together = [sample(sampler, 1, 2) for _ in range(10)]
    assert [tokens[1] for tokens in together] == first
    assert [tokens[0] for tokens in together] != first
    assert len(set(first)) > 3
    resumed = make_sampler(RANDOM, num_generated=6)
    assert [sample(resumed, 0)[0] for _ in range(4)] == first[6:]


def test_penalties_count_what_was_sampled_and_start_from_history() -> None:
    """With a frequency penalty and flat logits, greedy sampling goes through the vocabulary in order."""
    flat = Sampling(frequency_penalty=1.0)
    sampler = make_sampler(flat, flat)
    assert [sample(sampler, 0)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    assert sample(sampler, 1) == [0]
    sampler.start(RowStart(0, flat), 2)  # another sequence: nothing is left of the one before
    assert sample(sampler, 0) == [0]
    sampler.start(RowStart(0, flat, num_generated=2, history=u32([5, 5, 0, 1]), num_prompt_tokens=2), 3)
    assert sample(sampler, 0) == [2]
    # The repetition penalty sees the prompt, the others do not.
    repetition = Sampling(repetition_penalty=2.0)
    sampler.start(RowStart(3, repetition, history=u32([0, 1]), num_prompt_tokens=2), 4)
    assert sample(sampler, 3, logits=torch.ones(1, VOCAB)) == [2]
    assert sample(sampler, 3, logits=torch.ones(1, VOCAB)) == [3]


def test_stop_tokens_are_forbidden_until_there_are_enough() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 4] = 9.0
    sampler = make_sampler(Sampling(min_new_tokens=2, stop_tokens=u32([4])))
    assert [sample(sampler, 0, logits=logits)[0] for _ in range(3)] == [0, 0, 4]


@pytest.mark.parametrize("name", ["bias_tokens", "stop_tokens", "history"])
def test_tokens_outside_of_the_vocabulary_are_refused(name: str) -> None:
    sampling = Sampling()
    if name != "history":
        sampling = replace(sampling, **{name: u32([VOCAB])}, bias_values=np.zeros(1, np.float32))
    row = RowStart(0, sampling, history=u32([VOCAB] if name == "history" else []))
    with pytest.raises(InvalidStepError, match=f"step 5: token {VOCAB}"):
        Sampler(1, VOCAB, CPU).start(row, 5)
