"""sampling in Triton draws the reference's tokens: every stage alone and all together, in vocabularies of any size."""

from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from anaphora_kernels import SamplingMetadata
from anaphora_kernels.sampling import LogitBias, Penalties, RandomRows, Samples, reference, triton
from anaphora_kernels.testing import TRITON_DEVICE

ROWS = 5


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's time grows with the tokens that a program takes."""
    monkeypatch.setattr(triton, "CHUNK", 256)


def logits_of(vocab: int, rows: int = ROWS) -> torch.Tensor:
    """Distinct logits: no rounding can change their order."""
    random = np.random.default_rng(vocab)
    steps = random.uniform(0.5, 1.5, (rows, vocab)).cumsum(axis=1) * (25 / vocab) - 15
    return torch.from_numpy(random.permuted(steps, axis=1).astype(np.float32))


def random_rows(rows: list[int] | None, vocab: int, **fields: Any) -> RandomRows:
    random = np.random.default_rng(1)
    count = ROWS if rows is None else len(rows)
    draws = {
        "temperature": torch.from_numpy(random.uniform(0.5, 1.5, count).astype(np.float32)),
        "seeds": torch.from_numpy(random.integers(-(1 << 62), 1 << 62, count)),
        "num_generated": torch.from_numpy(random.integers(0, 1000, count)),
    }
    top_k = fields.get("top_k")
    if top_k is not None:
        fields["max_top_k"] = max((k for k in top_k if k < vocab), default=0)
    tensors = {name: torch.tensor(value) for name, value in fields.items() if name != "max_top_k"}
    return RandomRows(
        rows=None if rows is None else torch.tensor(rows), max_top_k=fields.get("max_top_k", 0), **draws, **tensors
    )


def moved(x: Any) -> Any:
    """The tensors of a dataclass where the kernels run."""
    if is_dataclass(x):
        return replace(x, **{name: moved(value) for name, value in vars(x).items()})
    return x.to(TRITON_DEVICE) if isinstance(x, torch.Tensor) else x


def check(logits: torch.Tensor, metadata: SamplingMetadata) -> Samples:
    logits, metadata = logits.to(TRITON_DEVICE), moved(metadata)
    before = logits.clone()
    expected, actual = reference.sampling(logits, metadata), triton.sampling(logits, metadata)
    assert torch.equal(actual.tokens, expected.tokens)
    assert actual.tokens.dtype == torch.int64
    torch.testing.assert_close(actual.logprobs, expected.logprobs, rtol=1e-5, atol=2e-5)
    if metadata.top_rows is not None:
        assert torch.equal(actual.top_tokens, expected.top_tokens)
        torch.testing.assert_close(actual.top_logprobs, expected.top_logprobs, rtol=1e-5, atol=2e-5)
    assert torch.equal(logits, before)
    return actual


VOCABULARIES = [50, 600]
TRUNCATIONS: dict[str, dict[str, list[float]]] = {
    "none": {},
    "top-k": {"top_k": [1, 7, 30, 49, 1 << 20]},
    "top-p": {"top_p": [0.01, 0.9, 0.999, 1.0, 0.5]},
    "min-p": {"min_p": [0.0, 0.01, 0.1, 1.0, 0.001]},
    "typical-p": {"typical_p": [0.1, 0.5, 0.9, 1.0, 0.7]},
}
TRUNCATIONS["all"] = {name: values for truncation in TRUNCATIONS.values() for name, values in truncation.items()}


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_truncations(vocab: int, truncation: str) -> None:
    fields = {name: list(values) for name, values in TRUNCATIONS[truncation].items()}
    if "top_k" in fields:
        fields["top_k"] = [min(int(k), vocab) for k in fields["top_k"]]
    check(logits_of(vocab), SamplingMetadata(random=random_rows(None, vocab, **fields)))


@pytest.mark.parametrize("vocab", [50, 600])
def test_more_candidates_than_the_buffer_holds(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "MAX_CANDIDATES", 16)
    fields = {"top_k": [1, 7, 30, 49, vocab], "top_p": TRUNCATIONS["top-p"]["top_p"]}
    check(logits_of(vocab), SamplingMetadata(random=random_rows(None, vocab, **fields)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_greedy_and_random_rows_mixed_with_alternatives(dtype: torch.dtype) -> None:
    logits = logits_of(300).to(dtype)
    random = random_rows([1, 4], 300, top_k=[5, 300], top_p=[0.9, 1.0])
    check(logits, SamplingMetadata(random=random, top_rows=torch.tensor([0, 4]), num_top=4))
    check(logits, SamplingMetadata())


def test_bias_and_penalties() -> None:
    vocab, logits = 600, logits_of(600)
    best = logits.argmax(-1)
    bias = LogitBias(
        torch.tensor([0, 0, 2]), torch.tensor([7, 7, int(best[2])]), torch.tensor([20.0, 20.0, -torch.inf])
    )
    seen, counts = torch.zeros(3, vocab, dtype=torch.bool), torch.zeros(3, vocab, dtype=torch.int32)
    seen[2, int(best[1])] = True
    counts[2, int(best[1])] = 3
    values = {"repetition": 3.0, "frequency": 0.7, "presence": -0.4}
    for names in (["repetition"], ["frequency"], ["presence"], list(values)):
        penalties = Penalties(
            torch.tensor([1, 4]),
            torch.tensor([2, 0]),
            seen,
            counts,
            **{name: torch.full((2,), values[name]) for name in names},
        )
        random = random_rows([1, 3], vocab, top_k=[3, 3])
        samples = check(logits, SamplingMetadata(bias=bias, penalties=penalties, random=random))
        assert int(samples.tokens[0]) == 7
        assert int(samples.tokens[2]) != int(best[2])


def test_ties_are_kept_together_and_zeros_have_one_sign() -> None:
    logits = torch.tensor([[0.0, -0.0, -1.0, 0.0, -0.0, -2.0]]).repeat(20, 1)
    random = RandomRows(
        None, torch.ones(20), torch.arange(20), torch.zeros(20, dtype=torch.int64), torch.ones(20, dtype=torch.int64), 1
    )
    samples = check(logits, SamplingMetadata(random=random))
    assert set(samples.tokens.tolist()) == {0, 1, 3, 4}


def test_what_is_removed_is_never_drawn() -> None:
    logits = torch.full((3, 200), -torch.inf)
    logits[:, 77] = torch.tensor([1.0, -60.0, 60.0])
    logits[1, 150] = -61
    fields = {"top_k": [3, 200, 5], "top_p": [0.9, 0.99, 1.0], "typical_p": [0.9, 1.0, 0.5]}
    for names in (["top_k"], ["top_p"], ["typical_p"], list(fields)):
        random = RandomRows(
            None,
            torch.ones(3),
            torch.arange(3),
            torch.zeros(3, dtype=torch.int64),
            max_top_k=5,
            **{name: torch.tensor(fields[name]) for name in names},
        )
        check(logits, SamplingMetadata(random=random))
