"""A recorded pass gives what its kernels give one by one, for any number of tokens, and refuses what it would miss."""

import anaphora_kernels
import pytest
import torch
from anaphora_kernels.linear.cpu import PackedWeight
from anaphora_kernels.recording import RECORDED_TOKENS, NotRecordableError, Recording, select_rows
from torch import Tensor

HIDDEN, INTERMEDIATE, MAX_TOKENS = 64, 96, 37


class Mlp:
    """A norm, a gated MLP and the residual stream."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.norm = torch.rand(HIDDEN, generator=generator)
        self.gate_up = PackedWeight(2 * INTERMEDIATE, HIDDEN)
        self.gate_up[:].pack(torch.randn(2 * INTERMEDIATE, HIDDEN, generator=generator))
        self.down = PackedWeight(HIDDEN, INTERMEDIATE)
        self.down[:].pack(torch.randn(HIDDEN, INTERMEDIATE, generator=generator))

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """What two rounds of it compute: the second one's tensors fit where the first one's were."""
        for _ in range(2):
            normed = anaphora_kernels.rms_norm(x, self.norm, 1e-5, residual=residual)
            gated = anaphora_kernels.gate_mul(anaphora_kernels.linear(normed, self.gate_up), "silu")
            x = anaphora_kernels.linear(gated, self.down)
        return x


def test_a_recorded_pass_equals_its_kernels_for_any_number_of_tokens() -> None:
    mlp = Mlp()
    x, residual = torch.zeros(MAX_TOKENS, HIDDEN), torch.zeros(MAX_TOKENS, HIDDEN)
    recording = Recording(lambda: mlp(x[:RECORDED_TOKENS], residual[:RECORDED_TOKENS]), MAX_TOKENS)
    result = recording.result.as_strided((MAX_TOKENS, HIDDEN), (HIDDEN, 1))
    for num_tokens in (1, 2, 3, 16, MAX_TOKENS):
        new_x, new_residual = torch.randn(num_tokens, HIDDEN), torch.randn(num_tokens, HIDDEN)
        x[:num_tokens], residual[:num_tokens] = new_x, new_residual
        recording.run(num_tokens, [])
        want = mlp(new_x, new_residual)
        assert torch.equal(result[:num_tokens], want), f"{num_tokens} tokens"
        assert torch.equal(residual[:num_tokens], new_residual), f"{num_tokens} tokens: the residual stream"


def test_memory_is_used_again() -> None:
    mlp = Mlp()
    seen = set()
    x, residual = torch.zeros(RECORDED_TOKENS, HIDDEN), torch.zeros(RECORDED_TOKENS, HIDDEN)

    def launch() -> None:
        y = x
        for _ in range(10):
            y = anaphora_kernels.rms_norm(y, mlp.norm, 1e-5, residual=residual)
            seen.add(y.data_ptr())

    Recording(launch, MAX_TOKENS)
    assert len(seen) == 2, "a result's memory is free once the next kernel has read it"


def test_a_pass_goes_on_with_selected_tokens() -> None:
    mlp = Mlp()
    x, residual = torch.zeros(MAX_TOKENS, HIDDEN), torch.zeros(MAX_TOKENS, HIDDEN)

    def launch(x: Tensor, residual: Tensor, indices: Tensor) -> Tensor:
        return mlp(*select_rows((mlp(x, residual), residual), indices))

    selected = torch.arange(RECORDED_TOKENS)
    recording = Recording(lambda: launch(x[:RECORDED_TOKENS], residual[:RECORDED_TOKENS], selected), MAX_TOKENS)
    result = recording.result.as_strided((MAX_TOKENS, HIDDEN), (HIDDEN, 1))
    for num_tokens, indices in ((1, [0]), (5, [4]), (16, [3, 0, 15]), (MAX_TOKENS, list(range(MAX_TOKENS)))):
        selected = torch.tensor(indices)
        x[:num_tokens], residual[:num_tokens] = torch.randn(num_tokens, HIDDEN), torch.randn(num_tokens, HIDDEN)
        want = launch(x[:num_tokens].clone(), residual[:num_tokens].clone(), selected)
        recording.run(num_tokens, [])
        recording.run_selected(selected, [])
        assert torch.equal(result[: len(indices)], want), f"{indices} of {num_tokens} tokens"


def test_tokens_are_selected_once() -> None:
    x = torch.zeros(RECORDED_TOKENS, HIDDEN)
    indices = torch.arange(RECORDED_TOKENS)
    with pytest.raises(NotRecordableError, match="once"):
        Recording(lambda: select_rows(select_rows((x,), indices), indices), RECORDED_TOKENS)


def test_what_torch_computes_is_refused() -> None:
    x = torch.zeros(RECORDED_TOKENS, HIDDEN)
    with pytest.raises(NotRecordableError, match="mul"):
        Recording(lambda: x * 2, MAX_TOKENS)
    assert torch.equal(x * 2, x), "and nothing is recorded any more"


def test_more_tokens_than_there_is_memory_for_are_refused() -> None:
    mlp = Mlp()
    x, residual = torch.zeros(MAX_TOKENS, HIDDEN), torch.zeros(MAX_TOKENS, HIDDEN)
    recording = Recording(lambda: mlp(x[:RECORDED_TOKENS], residual[:RECORDED_TOKENS]), MAX_TOKENS)
    with pytest.raises(ValueError, match="38 tokens, but the memory is for 37"):
        recording.run(MAX_TOKENS + 1, [])


def test_a_recorded_weight_is_not_packed_again() -> None:
    mlp = Mlp()
    x, residual = torch.zeros(MAX_TOKENS, HIDDEN), torch.zeros(MAX_TOKENS, HIDDEN)
    recording = Recording(lambda: mlp(x[:RECORDED_TOKENS], residual[:RECORDED_TOKENS]), MAX_TOKENS)
    with pytest.raises(ValueError, match="cannot be packed again"):
        mlp.down[:].pack(torch.zeros(HIDDEN, INTERMEDIATE))
    recording.run(1, [])
