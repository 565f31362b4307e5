"""How the rows choose their tokens: parameters by slot, on the host; token counts by slot, on the device.

    start(row)              once per sequence: its parameters, and what penalties must count
    sample(logits, slots)   parameters of these slots -> SamplingMetadata -> anaphora_kernels.sampling -> tokens

The arithmetic is `anaphora_kernels.sampling`'s; this file knows which rows need which stage, so that nothing is
computed for a stage that no row uses.
"""

from dataclasses import dataclass
from typing import Final

import anaphora_kernels
import numpy as np
import torch
from anaphora_kernels import SamplingMetadata
from anaphora_kernels.sampling import LogitBias, Penalties, RandomRows, Samples
from numpy.typing import NDArray
from torch import Tensor

from anaphora.errors import InvalidStepError
from anaphora.ragged import I64Array, Ragged
from anaphora.staging import upload
from anaphora.wire import RowStart, Sampling

# Below this a temperature is greedy: dividing by it would overflow, and the likeliest token is as good as certain.
_MIN_TEMPERATURE: Final = 1e-5

# One record per slot. Integers are as wide as the device tensors that they become.
_PARAMETERS: Final = np.dtype(
    [
        ("temperature", np.float32),
        ("top_k", np.int64),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("typical_p", np.float32),
        ("repetition", np.float32),
        ("frequency", np.float32),
        ("presence", np.float32),
        ("seed", np.int64),  # the 64 bits of the seed, whatever their sign
        ("num_generated", np.int64),
        ("num_top", np.int64),
        ("min_new_tokens", np.int64),
        ("is_random", np.bool_),
        ("is_penalised", np.bool_),
        ("is_biased", np.bool_),
    ]
)


@dataclass(frozen=True)
class SampledBatch:
    """What was chosen for the rows of a batch, still on the device."""

    samples: Samples
    top_rows: I64Array  # rows that asked for alternatives
    num_top: I64Array  # how many each of them asked for; `samples` holds the most that any did


class Sampler:
    """The sampling state of every slot."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        """No slot has parameters yet; all memory that any will need is there."""
        self.vocab_size = vocab_size
        self.device = device
        self._parameters = np.zeros(max_rows, _PARAMETERS)
        self._biases = Ragged(max_rows)
        self._stop_tokens = Ragged(max_rows)  # with -inf: what they are biased by while they are forbidden
        # [max_rows, vocab] each. numpy's zeros are pages that do not exist on a CPU before a penalty touches them.
        shape = (max_rows, vocab_size)
        self._seen = torch.from_numpy(np.zeros(shape, np.bool_)).to(device)
        self._output_counts = torch.from_numpy(np.zeros(shape, np.int32)).to(device)

    def start(self, row: RowStart, step_id: int) -> None:
        """A slot begins a sequence. Raises InvalidStepError for tokens outside of the vocabulary."""
        sampling = row.sampling
        for tokens in (sampling.bias_tokens, sampling.stop_tokens, row.history):
            if tokens.size > 0 and int(tokens.max()) >= self.vocab_size:
                raise InvalidStepError(step_id, f"token {tokens.max()} is not in a vocabulary of {self.vocab_size}")
        self._parameters[row.slot] = self._record(sampling, row.num_generated)
        self._biases.set(row.slot, sampling.bias_tokens.astype(np.int64), sampling.bias_values)
        stop_tokens = sampling.stop_tokens.astype(np.int64)
        self._stop_tokens.set(row.slot, stop_tokens, np.full(stop_tokens.size, -np.inf, np.float32))
        if sampling.needs_history:
            self._count_history(row)

    def sample(self, logits: Tensor, slots: I64Array) -> SampledBatch:
        """One token for each row of `logits` [R, vocab]; row i belongs to slot `slots[i]`. Counts them as generated."""
        parameters = self._parameters[slots]
        penalties = self._penalties(parameters, slots)
        top_rows = np.flatnonzero(parameters["num_top"])
        metadata = SamplingMetadata(
            bias=self._bias(parameters, slots),
            penalties=penalties,
            random=self._random_rows(parameters),
            top_rows=upload([top_rows], self.device)[0] if top_rows.size > 0 else None,
            num_top=int(parameters["num_top"].max()),
        )
        samples = anaphora_kernels.sampling(logits, metadata)
        self._parameters["num_generated"][slots] += 1
        if penalties is not None:
            ones = torch.ones_like(penalties.slots, dtype=torch.int32)
            chosen = (penalties.slots, samples.tokens[penalties.rows])
            penalties.output_counts.index_put_(chosen, ones, accumulate=True)
            penalties.seen.index_put_(chosen, ones.bool())
        return SampledBatch(samples, top_rows, parameters["num_top"][top_rows])

    # === state of a slot ===

    def _record(self, sampling: Sampling, num_generated: int) -> NDArray[np.void]:
        record = np.zeros((), _PARAMETERS)
        is_random = sampling.temperature >= _MIN_TEMPERATURE
        record["temperature"] = sampling.temperature if is_random else 1.0
        record["top_k"] = sampling.top_k if 0 < sampling.top_k < self.vocab_size else self.vocab_size
        record["top_p"] = sampling.top_p
        record["min_p"] = sampling.min_p
        record["typical_p"] = sampling.typical_p
        record["repetition"] = sampling.repetition_penalty
        record["frequency"] = sampling.frequency_penalty
        record["presence"] = sampling.presence_penalty
        record["seed"] = np.uint64(sampling.seed).astype(np.int64)
        record["num_generated"] = num_generated
        record["num_top"] = min(sampling.num_top_logprobs, self.vocab_size)
        record["min_new_tokens"] = sampling.min_new_tokens if sampling.stop_tokens.size > 0 else 0
        record["is_random"] = is_random
        record["is_penalised"] = sampling.needs_history
        record["is_biased"] = sampling.bias_tokens.size > 0
        return record

    def _count_history(self, row: RowStart) -> None:
        history = row.history.astype(np.int64)
        seen, output = upload((history, history[row.num_prompt_tokens :]), self.device)
        self._seen[row.slot].zero_().index_fill_(0, seen, 1)
        ones = torch.ones_like(output, dtype=torch.int32)
        self._output_counts[row.slot].zero_().index_put_((output,), ones, accumulate=True)

    # === metadata of a batch: None for a stage that no row uses ===

    def _bias(self, parameters: NDArray[np.void], slots: I64Array) -> LogitBias | None:
        """Biases, and -inf for the stop tokens of rows that must go on."""
        biased = np.flatnonzero(parameters["is_biased"])
        going_on = np.flatnonzero(parameters["num_generated"] < parameters["min_new_tokens"])
        if biased.size + going_on.size == 0:
            return None
        parts = []
        for rows, lists in ((biased, self._biases), (going_on, self._stop_tokens)):
            indices, tokens, values = lists.gather(slots[rows])
            parts.append((rows[indices], tokens, values))
        return LogitBias(*upload([np.concatenate(arrays) for arrays in zip(*parts, strict=True)], self.device))

    def _penalties(self, parameters: NDArray[np.void], slots: I64Array) -> Penalties | None:
        rows = np.flatnonzero(parameters["is_penalised"])
        if rows.size == 0:
            return None
        chosen = parameters[rows]
        off = {"repetition": 1, "frequency": 0, "presence": 0}
        names = [name for name, neutral in off.items() if (chosen[name] != neutral).any()]
        # A field of a record array is strided: tensors want memory of their own.
        tensors = upload((rows, slots[rows], *(chosen[name].copy() for name in names)), self.device)
        values = dict(zip(names, tensors[2:], strict=True))
        return Penalties(tensors[0], tensors[1], self._seen, self._output_counts, **values)

    def _random_rows(self, parameters: NDArray[np.void]) -> RandomRows | None:
        rows = np.flatnonzero(parameters["is_random"])
        if rows.size == 0:
            return None
        chosen = parameters[rows]
        uses = {
            "top_k": bool((chosen["top_k"] < self.vocab_size).any()),
            "top_p": bool((chosen["top_p"] < 1).any()),
            "min_p": bool((chosen["min_p"] > 0).any()),
            "typical_p": bool((chosen["typical_p"] < 1).any()),
        }
        names = ["temperature", "seed", "num_generated", *(name for name, used in uses.items() if used)]
        tensors = upload([rows, *(chosen[name].copy() for name in names)], self.device)
        by_name = dict(zip(names, tensors[1:], strict=True))
        top_k = chosen["top_k"]
        return RandomRows(
            rows=None if rows.size == parameters.size else tensors[0],
            temperature=by_name["temperature"],
            seeds=by_name["seed"],
            num_generated=by_name["num_generated"],
            top_k=by_name.get("top_k"),
            max_top_k=int(top_k[top_k < self.vocab_size].max()) if uses["top_k"] else 0,
            top_p=by_name.get("top_p"),
            min_p=by_name.get("min_p"),
            typical_p=by_name.get("typical_p"),
        )
