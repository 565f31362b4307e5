"""Qwen3, the dense models: Llama with a norm on every query and key head. https://arxiv.org/abs/2505.09388."""

from torch import Tensor

from anaphora.models.llama import LlamaForCausalLM


class Qwen3ForCausalLM(LlamaForCausalLM):
    """Equal to transformers' `Qwen3ForCausalLM`."""

    def from_gguf(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of a GGUF file as Hugging Face has it: llama.cpp rotates halves here too, and nothing is moved."""
        return tensor
