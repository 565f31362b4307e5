"""sampling: every stage against a twin that works on one row at a time in float64; batches against their rows."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from anaphora_kernels import SamplingMetadata, sampling
from anaphora_kernels.sampling import LogitBias, Penalties, RandomRows, reference
from anaphora_kernels.testing import implementations
from hypothesis import given, settings
from hypothesis import strategies as st

VOCAB = 50
MASK_64 = (1 << 64) - 1


# === twins: one row, plain Python and numpy ===


def twin_softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def twin_penalties(
    logits: np.ndarray, prompt: list[int], output: list[int], repetition: float, frequency: float, presence: float
) -> np.ndarray:
    scores = logits.copy()
    for token in set(prompt) | set(output):
        scores[token] = scores[token] * repetition if scores[token] < 0 else scores[token] / repetition
    for token in set(output):
        scores[token] -= output.count(token) * frequency + presence
    return scores


def twin_top_k(logits: np.ndarray, top_k: int) -> set[int]:
    threshold = sorted(logits, reverse=True)[min(top_k, len(logits)) - 1]
    return {token for token in range(len(logits)) if logits[token] >= threshold}


def twin_top_p(logits: np.ndarray, top_p: float) -> set[int]:
    probabilities = twin_softmax(logits)
    kept, mass = set[int](), 0.0
    for token in sorted(range(len(logits)), key=lambda token: -logits[token]):
        if mass >= top_p and top_p < 1:
            break
        kept.add(token)
        mass += probabilities[token]
    return kept


def twin_min_p(logits: np.ndarray, min_p: float) -> set[int]:
    probabilities = twin_softmax(logits)
    return {token for token in range(len(logits)) if probabilities[token] >= min_p * probabilities.max()}


def twin_typical_p(logits: np.ndarray, typical_p: float) -> set[int]:
    probabilities = twin_softmax(logits)
    surprise = [-math.log(p) for p in probabilities]
    entropy = sum(p * s for p, s in zip(probabilities, surprise, strict=True))
    kept, mass = set[int](), 0.0
    for token in sorted(range(len(logits)), key=lambda token: abs(surprise[token] - entropy)):
        kept.add(token)
        mass += probabilities[token]
        if mass >= typical_p and typical_p < 1:
            break
    return kept


def twin_uniform(seed: int, counter: int) -> float:
    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK_64
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    return (mix((mix((seed + golden) & MASK_64) + counter * golden) & MASK_64) >> 11) * 2.0**-53


def twin_draw(logits: np.ndarray, uniform: float) -> int:
    cumulative = np.cumsum(twin_softmax(logits))
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))


# === strategies: no two logits so near that float32 and float64 could disagree about their order ===

SEEDS = st.integers(0, 2**32 - 1)


def distinct_logits(seed: int, num_rows: int) -> torch.Tensor:
    random = np.random.default_rng(seed)
    steps = random.uniform(0.01, 0.4, (num_rows, VOCAB)).cumsum(axis=1) - random.uniform(0, 8)
    return torch.from_numpy(random.permuted(steps, axis=1).astype(np.float32))


def kept(logits: torch.Tensor) -> list[set[int]]:
    return [set(np.flatnonzero(np.isfinite(row)).tolist()) for row in logits.numpy()]


def assert_keeps_mass(
    actual: set[int], twin: Callable[[np.ndarray, float], set[int]], row: np.ndarray, p: float
) -> None:
    """What `twin` keeps. Where a mass of float32 probabilities meets p to five digits it may fall on either side.

    Several tokens of little probability may stand within those digits: some of them may be kept.
    """
    fewest, most = (twin(row, q) for q in (p * (1 - 1e-5), p if p == 1 else min(p * (1 + 1e-5), 1 - 1e-12)))
    assert fewest <= actual <= most


def per_row(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
    return st.lists(values, min_size=1, max_size=5)


# === stages ===


@given(SEEDS, per_row(st.integers(1, VOCAB)))
def test_top_k(seed: int, top_k: list[int]) -> None:
    logits = distinct_logits(seed, len(top_k))
    in_use = [k for k in top_k if k < VOCAB]
    actual = reference.keep_top_k(logits, torch.tensor(top_k), max(in_use, default=VOCAB))
    assert kept(actual) == [twin_top_k(row, k) for row, k in zip(logits.numpy(), top_k, strict=True)]


@given(SEEDS, per_row(st.floats(2**-10, 1.0, width=32)))
def test_top_p(seed: int, top_p: list[float]) -> None:
    logits = distinct_logits(seed, len(top_p))
    for actual, row, p in zip(
        kept(reference.keep_top_p(logits, torch.tensor(top_p))), logits.numpy(), top_p, strict=True
    ):
        assert_keeps_mass(actual, twin_top_p, row.astype(np.float64), p)


@given(SEEDS, per_row(st.floats(0.0, 1.0, width=32)))
def test_min_p(seed: int, min_p: list[float]) -> None:
    logits = distinct_logits(seed, len(min_p))
    for actual, row, p in zip(
        kept(reference.keep_min_p(logits, torch.tensor(min_p))), logits.numpy(), min_p, strict=True
    ):
        assert actual in [twin_min_p(row.astype(np.float64), q) for q in (p * (1 - 1e-5), p, p * (1 + 1e-5))]


@given(SEEDS, per_row(st.floats(2**-7, 1.0, width=32)))
def test_typical_p(seed: int, typical_p: list[float]) -> None:
    logits = distinct_logits(seed, len(typical_p))
    stage = reference.keep_typical_p(logits, torch.tensor(typical_p))
    for actual, row, p in zip(kept(stage), logits.double().numpy(), typical_p, strict=True):
        assert_keeps_mass(actual, twin_typical_p, row, p)


def test_ties_are_kept_together() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    assert kept(reference.keep_top_k(logits, torch.tensor([1]), 1)) == [{1, 2}]
    assert kept(reference.keep_top_p(logits, torch.tensor([0.1]))) == [{1, 2}]


@given(
    SEEDS,
    st.lists(st.integers(0, VOCAB - 1), max_size=30),
    st.lists(st.integers(0, VOCAB - 1), max_size=30),
    st.just(1.0) | st.floats(0.5, 2.0),
    st.just(0.0) | st.floats(-2, 2),
    st.just(0.0) | st.floats(-2, 2),
)
def test_penalties(
    seed: int, prompt: list[int], output: list[int], repetition: float, frequency: float, presence: float
) -> None:
    """Row 2 of 3, slot 1 of 2; the other rows are left alone."""
    logits = distinct_logits(seed, 3)
    seen = torch.zeros(2, VOCAB, dtype=torch.bool)
    seen[1, prompt + output] = True
    counts = torch.zeros(2, VOCAB, dtype=torch.int32)
    counts[1] = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=VOCAB)
    values = zip((repetition, frequency, presence), (1, 0, 0), strict=True)
    used = (None if value == neutral else torch.tensor([value]) for value, neutral in values)
    penalties = Penalties(torch.tensor([2]), torch.tensor([1]), seen, counts, *used)
    actual = reference.apply_penalties(logits, penalties)
    expected = twin_penalties(logits[2].double().numpy(), prompt, output, repetition, frequency, presence)
    np.testing.assert_allclose(actual[2], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(actual[:2], logits[:2])


def test_bias_adds_up_and_can_forbid() -> None:
    logits = torch.zeros(2, 4)
    bias = LogitBias(torch.tensor([0, 0, 1]), torch.tensor([1, 1, 3]), torch.tensor([1.5, 2.0, -torch.inf]))
    expected = torch.tensor([[0, 3.5, 0, 0], [0, 0, 0, -torch.inf]])
    assert torch.equal(reference.add_bias(logits, bias), expected)
    assert torch.equal(logits, torch.zeros(2, 4))


# === randomness ===


@given(st.lists(st.tuples(st.integers(0, MASK_64), st.integers(0, 1 << 20)), min_size=1, max_size=20))
def test_uniform(pairs: list[tuple[int, int]]) -> None:
    seeds = torch.from_numpy(np.array([seed for seed, _ in pairs], np.uint64).view(np.int64))
    counters = torch.tensor([counter for _, counter in pairs])
    assert reference.uniform(seeds, counters).tolist() == [twin_uniform(*pair) for pair in pairs]


def test_uniform_is_uniform_along_seeds_and_along_counters() -> None:
    steps = torch.arange(100_000)
    for numbers in (
        reference.uniform(steps, torch.zeros_like(steps)),
        reference.uniform(torch.zeros_like(steps), steps),
    ):
        counts = torch.histc(numbers.float(), 100, 0, 1)
        chi_squared = float(((counts - 1000) ** 2 / 1000).sum())
        assert 60 < chi_squared < 150  # 99 degrees of freedom: 0.1 % and 99.9 % are 61 and 149
        correlation = torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1]
        assert abs(float(correlation)) < 0.015


@given(SEEDS, per_row(st.floats(0, 1, exclude_max=True)))
def test_draw(seed: int, uniforms: list[float]) -> None:
    logits = distinct_logits(seed, len(uniforms))
    logits[:, ::3] = -torch.inf
    actual = reference.draw(logits, torch.tensor(uniforms, dtype=torch.float64)).tolist()
    for row, token, uniform in zip(logits.double().numpy(), actual, uniforms, strict=True):
        assert np.isfinite(row[token])
        assert token in [twin_draw(row, u) for u in (max(uniform - 1e-6, 0), uniform, min(uniform + 1e-6, 1 - 1e-12))]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_draw_never_takes_what_is_removed(uniform: float) -> None:
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0, -torch.inf]])
    assert int(reference.draw(logits, torch.tensor([uniform], dtype=torch.float64))) == (1 if uniform == 0 else 3)


# === the whole ===


@pytest.mark.parametrize(("name", "dtype"), implementations("sampling"))
def test_frequencies_follow_the_distribution(name: str, dtype: torch.dtype) -> None:
    num_draws, temperature = 20_000, 0.7
    logits = distinct_logits(3, 1)[:, :12].to(dtype)
    random = RandomRows(
        rows=None,
        temperature=torch.full((num_draws,), temperature),
        seeds=torch.arange(num_draws),
        num_generated=torch.full((num_draws,), 5),
    )
    samples = sampling(logits.expand(num_draws, -1), SamplingMetadata(random=random), implementation=name)
    expected = (logits[0].double() / temperature).softmax(-1) * num_draws
    counts = torch.bincount(samples.tokens, minlength=12)
    assert float(((counts - expected) ** 2 / expected).sum()) < 31.3  # 99.9 % with 11 degrees of freedom


def random_rows(rows: list[int], random: np.random.Generator) -> RandomRows:
    count = len(rows)
    top_k = random.integers(1, VOCAB, count)
    uniform = random.uniform

    def floats(low: float, high: float) -> torch.Tensor:
        return torch.from_numpy(uniform(low, high, count).astype(np.float32))

    return RandomRows(
        rows=torch.tensor(rows),
        temperature=floats(0.5, 1.5),
        seeds=torch.from_numpy(random.integers(0, 1 << 40, count)),
        num_generated=torch.from_numpy(random.integers(0, 100, count)),
        top_k=torch.from_numpy(top_k),
        max_top_k=int(top_k.max()),
        top_p=floats(0.5, 1),
        min_p=floats(0, 0.1),
        typical_p=floats(0.5, 1),
    )


@settings(deadline=None)
@given(SEEDS, st.integers(1, 6))
def test_a_batch_equals_its_rows_one_by_one(seed: int, num_rows: int) -> None:
    """Greedy and random rows mixed; log-probabilities are those of the unmodified logits."""
    random = np.random.default_rng(seed)
    logits = distinct_logits(seed, num_rows)
    rows = [row for row in range(num_rows) if random.random() < 0.6] or [0]
    chosen = random_rows(rows, random)
    metadata = SamplingMetadata(random=chosen, top_rows=torch.tensor([num_rows - 1]), num_top=4)
    samples = sampling(logits, metadata)
    for row in range(num_rows):
        if row in rows:
            index = rows.index(row)
            alone = RandomRows(
                **{
                    name: value[index : index + 1] if isinstance(value, torch.Tensor) else value
                    for name, value in vars(chosen).items()
                }
                | {"rows": None}
            )
            expected = int(sampling(logits[row : row + 1], SamplingMetadata(random=alone)).tokens)
        else:
            expected = int(logits[row].argmax())
        assert int(samples.tokens[row]) == expected
    logprobs = logits.log_softmax(-1)
    torch.testing.assert_close(samples.logprobs, logprobs.gather(1, samples.tokens.unsqueeze(1)).squeeze(1))
    assert samples.top_tokens is not None
    assert samples.top_logprobs is not None
    expected_top = logprobs[-1:].topk(4)
    assert torch.equal(samples.top_tokens, expected_top.indices)
    torch.testing.assert_close(samples.top_logprobs, expected_top.values)


@pytest.mark.parametrize(("name", "dtype"), implementations("sampling"))
def test_every_implementation_chooses_as_the_reference_does(name: str, dtype: torch.dtype) -> None:
    num_rows, vocab_size = 48, 5003
    random = torch.Generator().manual_seed(5)
    logits = (torch.randn(num_rows, vocab_size, generator=random) * 3).to(dtype)
    rows = torch.arange(0, num_rows, 3)
    count = len(rows)
    draws = RandomRows(
        rows=rows,
        temperature=torch.linspace(0.4, 2.0, count),
        seeds=torch.arange(count) * 7919 - 5,
        num_generated=torch.arange(count) % 5,
    )
    top_k = torch.tensor([1, 5, 40, 700] * count)[:count]
    top_p = torch.tensor([0.3, 0.9, 0.999, 1.0] * count)[:count]
    for random_rows in (
        draws,
        replace(draws, top_k=top_k, max_top_k=700),
        replace(draws, top_p=top_p),
        replace(draws, min_p=torch.full((count,), 0.1)),
        replace(draws, top_k=top_k.flip(0), max_top_k=700, top_p=top_p, min_p=torch.full((count,), 0.01)),
        replace(draws, typical_p=torch.full((count,), 0.8)),
    ):
        bias = LogitBias(torch.tensor([0, 1]), torch.tensor([7, 8]), torch.tensor([100.0, -torch.inf]))
        for metadata in (
            SamplingMetadata(random=random_rows),
            SamplingMetadata(random=random_rows, bias=bias, top_rows=torch.tensor([1, 4]), num_top=6),
        ):
            expected = sampling(logits, metadata, implementation="reference")
            actual = sampling(logits, metadata, implementation=name)
            assert torch.equal(actual.tokens, expected.tokens)
            assert torch.allclose(actual.logprobs, expected.logprobs, atol=1e-5)
            if metadata.top_rows is not None:
                assert torch.allclose(actual.top_logprobs, expected.top_logprobs, atol=1e-5)
