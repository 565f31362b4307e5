"""A real model, SmolLM2-135M-Instruct from its quantised GGUF file, against transformers on the same, in float32."""

from pathlib import Path

import pytest
import torch
from anaphora.config import cache_dir
from anaphora.loader import LoadedModel, load_model
from anaphora.parallel import ParallelGroup
from held import held
from paged_driver import Driver
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.quantization_config import GgufConfig

GGUF = cache_dir() / "models" / "smollm2-135m" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = [
    # <|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n
    [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198],
    [504, 2961, 282, 260],
    list(range(1000, 1300)),
]


@pytest.fixture(scope="module")
def theirs() -> PreTrainedModel:
    assert GGUF.exists(), f"{GGUF} is not there: `make model` fetches it"
    return AutoModelForCausalLM.from_pretrained(
        GGUF.parent, gguf_file=GGUF.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).eval()


@pytest.fixture(scope="module")
def ours(theirs: PreTrainedModel) -> LoadedModel:
    return load(GGUF)


def load(path: Path) -> LoadedModel:
    return load_model(path, dtype="float32", device=torch.device("cpu"), group=ParallelGroup())


def test_logits_and_greedy_tokens_are_those_of_transformers(theirs: PreTrainedModel, ours: LoadedModel) -> None:
    outputs = Driver(ours.model).greedy(PROMPTS, 64, 128)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        sequence = prompt + output
        with torch.inference_mode():
            logits = theirs(torch.tensor([sequence])).logits[0]
        torch.testing.assert_close(Driver(ours.model).prompt_logits(sequence, 128), logits, rtol=1e-3, atol=1e-3)
        # Each token is the likeliest after those before it: by induction, what transformers would have generated.
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == output


def test_the_same_weights_as_safetensors(theirs: PreTrainedModel, ours: LoadedModel, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="200MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = load(tmp_path)
    assert again.fingerprint != ours.fingerprint  # no claim: another file, another name
    expected = ours.model.parts()
    for name, part in again.model.parts().items():
        assert torch.equal(held(part), held(expected[name])), name
    assert again.config.norm_eps == pytest.approx(ours.config.norm_eps)
    assert again.config.rope_theta == ours.config.rope_theta
    assert again.config.tie_word_embeddings
