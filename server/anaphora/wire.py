"""The step protocol as dataclasses: the only file that sees protobuf.

    bytes of the wire -> message (built at run time from `_native.DESCRIPTORS`) -> frozen dataclass with numpy arrays

The descriptors are the very bytes from which the router's Rust types were made, so the two sides cannot drift apart.
Packed arrays stay where protobuf put them: the numpy arrays are read-only views, never copies. Nothing here knows how
large a pool or a batch may be; what can be checked of a message by itself is checked here, the rest in `batch.py`.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from numpy.typing import NDArray

from anaphora import _native
from anaphora.errors import InvalidRequestError, InvalidStepError

U32Array = NDArray[np.uint32]
F32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

SERVICE: Final = "anaphora.shard.v1.Shard"
"""Full name of the gRPC service."""

# Little-endian by contract, whatever the machine is.
_U32: Final = np.dtype("<u4")
_F32: Final = np.dtype("<f4")

_FLAG_SAMPLE: Final = 1
_FLAG_TOKENS: Final = 2

NO_TOKENS: Final[U32Array] = np.empty(0, _U32)
"""An empty array of token ids (or slots, or blocks)."""

NO_VALUES: Final[F32Array] = np.empty(0, _F32)
"""An empty array of floats."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of one sequence are chosen; by default greedily. `shard.proto` has the units."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias_tokens: U32Array = field(default_factory=lambda: NO_TOKENS)
    bias_values: F32Array = field(default_factory=lambda: NO_VALUES)
    seed: int = 0
    num_top_logprobs: int = 0
    min_new_tokens: int = 0
    stop_tokens: U32Array = field(default_factory=lambda: NO_TOKENS)

    @property
    def needs_history(self) -> bool:
        """Whether a penalty counts the tokens so far."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0


@dataclass(frozen=True, slots=True)
class RowStart:
    """A slot begins a sequence, or resumes one after a preemption."""

    slot: int
    sampling: Sampling
    num_generated: int = 0
    history: U32Array = field(default_factory=lambda: NO_TOKENS)  # prompt + generated; empty if no penalty needs it
    num_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class BlockTableDelta:
    """`blocks[i]` holds the positions `(start + i) * block_size ..` of the slot's sequence."""

    slot: int
    start: int
    blocks: U32Array


@dataclass(frozen=True, slots=True)
class Step:
    """What to compute: a delta against the slots' mirror, then rows (one element per row in each of the row arrays)."""

    id: int
    finished: U32Array = field(default_factory=lambda: NO_TOKENS)  # [num_finished] slots
    started: tuple[RowStart, ...] = ()
    block_tables: tuple[BlockTableDelta, ...] = ()
    block_copies: U32Array = field(default_factory=lambda: NO_TOKENS.reshape(0, 2))  # [n, (source, destination)]

    slots: U32Array = field(default_factory=lambda: NO_TOKENS)  # [num_rows]
    positions: U32Array = field(default_factory=lambda: NO_TOKENS)  # [num_rows] of the first token computed
    num_tokens: U32Array = field(default_factory=lambda: NO_TOKENS)  # [num_rows] at least 1
    samples: BoolArray = field(default_factory=lambda: np.empty(0, np.bool_))  # [num_rows] sample after the last token
    has_tokens: BoolArray = field(default_factory=lambda: np.empty(0, np.bool_))  # [num_rows] inputs stand in `tokens`
    tokens: U32Array = field(default_factory=lambda: NO_TOKENS)  # [sum of num_tokens where has_tokens]

    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """The likeliest tokens of one sampling row, likeliest first."""

    index: int  # into StepResult.tokens
    tokens: U32Array
    logprobs: F32Array


@dataclass(frozen=True, slots=True)
class StepResult:
    """What was sampled, one element per sampling row; empty on ranks other than 0."""

    id: int
    tokens: U32Array
    logprobs: F32Array
    top: tuple[TopLogprobs, ...] = ()
    duration_us: int = 0


@dataclass(frozen=True, slots=True)
class Description:
    """What this rank is (`DescribeResponse`)."""

    fingerprint: str
    architecture: str
    dtype: str
    kv_cache_dtype: str
    device: str
    rank: int
    world_size: int
    vocab_size: int
    max_context: int
    kv_bytes_per_token: int
    device_memory_bytes: int
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """The sizes that hold until the next `Configure` (`ConfigureRequest`)."""

    block_size: int  # tokens per KV block
    max_rows: int  # slots are 0 .. max_rows - 1
    max_step_tokens: int
    max_context: int  # tokens
    num_blocks: int = 0  # 0: as many as memory_utilization allows
    memory_utilization: float = 0.9

    @property
    def max_blocks_per_row(self) -> int:
        """The longest block table."""
        return -(-self.max_context // self.block_size)


# === messages ===


def _message_classes() -> dict[str, type[message.Message]]:
    """The message classes of `shard.proto` by their short names."""
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(_native.DESCRIPTORS)
    for file in files.file:
        pool.Add(file)
    service = pool.FindServiceByName(SERVICE)
    return {
        name: message_factory.GetMessageClass(descriptor)
        for name, descriptor in service.file.message_types_by_name.items()
    }


# Message classes made at run time have no static types: this dictionary is the border.
_MESSAGES: Final[dict[str, Any]] = _message_classes()


def decode_step(data: bytes) -> Step:
    """The step in `data`. Raises `InvalidStepError` if its parts contradict each other."""
    proto = _parse("Step", data)
    step_id = proto.id
    flags = np.frombuffer(proto.flags, np.uint8)
    step = Step(
        id=step_id,
        finished=_unpack(proto.finished, _U32, step_id),
        started=tuple(_row_start(row, step_id) for row in proto.started),
        block_tables=tuple(
            BlockTableDelta(delta.slot, delta.start, _unpack(delta.blocks, _U32, step_id))
            for delta in proto.block_tables
        ),
        block_copies=_pairs(_unpack(proto.block_copies, _U32, step_id), step_id),
        slots=_unpack(proto.slots, _U32, step_id),
        positions=_unpack(proto.positions, _U32, step_id),
        num_tokens=_unpack(proto.num_tokens, _U32, step_id),
        samples=(flags & _FLAG_SAMPLE) != 0,
        has_tokens=(flags & _FLAG_TOKENS) != 0,
        tokens=_unpack(proto.tokens, _U32, step_id),
        traceparent=proto.traceparent,
    )
    _check_rows(step)
    return step


def encode_result(result: StepResult) -> bytes:
    """The wire form of a step's result."""
    classes = _MESSAGES
    proto = classes["StepResult"](
        id=result.id,
        tokens=_pack(result.tokens, _U32),
        logprobs=_pack(result.logprobs, _F32),
        top=[
            classes["TopLogprobs"](index=top.index, tokens=_pack(top.tokens, _U32), logprobs=_pack(top.logprobs, _F32))
            for top in result.top
        ],
        duration_us=result.duration_us,
    )
    return bytes(proto.SerializeToString())


def encode_description(description: Description) -> bytes:
    """The wire form of `Describe`'s answer."""
    fields = {name: getattr(description, name) for name in description.__slots__}
    return bytes(_MESSAGES["DescribeResponse"](**fields).SerializeToString())


def decode_limits(data: bytes) -> Limits:
    """`Configure`'s request. Raises `InvalidRequestError` if a size is 0 or a fraction is none."""
    proto = _parse("ConfigureRequest", data)
    limits = Limits(**{name: getattr(proto, name) for name in Limits.__slots__})
    for name in ("block_size", "max_rows", "max_step_tokens", "max_context"):
        if getattr(limits, name) == 0:
            raise InvalidRequestError(f"Configure: {name} must be at least 1")
    if limits.num_blocks == 0 and not 0.0 < limits.memory_utilization <= 1.0:
        raise InvalidRequestError(
            f"Configure: memory_utilization must be above 0 and at most 1, not {limits.memory_utilization}"
        )
    return limits


def encode_num_blocks(num_blocks: int) -> bytes:
    """The wire form of `Configure`'s answer."""
    return bytes(_MESSAGES["ConfigureResponse"](num_blocks=num_blocks).SerializeToString())


# === the router's side, for tests and tools that drive a shard from Python ===


def encode_step(step: Step) -> bytes:
    """The wire form of a step."""
    classes = _MESSAGES
    proto = classes["Step"](
        id=step.id,
        finished=_pack(step.finished, _U32),
        started=[_row_start_message(row) for row in step.started],
        block_tables=[
            classes["BlockTableDelta"](slot=delta.slot, start=delta.start, blocks=_pack(delta.blocks, _U32))
            for delta in step.block_tables
        ],
        block_copies=_pack(step.block_copies, _U32),
        slots=_pack(step.slots, _U32),
        positions=_pack(step.positions, _U32),
        num_tokens=_pack(step.num_tokens, _U32),
        flags=(step.samples * np.uint8(_FLAG_SAMPLE) + step.has_tokens * np.uint8(_FLAG_TOKENS)).tobytes(),
        tokens=_pack(step.tokens, _U32),
        traceparent=step.traceparent,
    )
    return bytes(proto.SerializeToString())


def decode_result(data: bytes) -> StepResult:
    """The result in `data`."""
    proto = _parse("StepResult", data)
    return StepResult(
        id=proto.id,
        tokens=_unpack(proto.tokens, _U32, proto.id),
        logprobs=_unpack(proto.logprobs, _F32, proto.id),
        top=tuple(
            TopLogprobs(top.index, _unpack(top.tokens, _U32, proto.id), _unpack(top.logprobs, _F32, proto.id))
            for top in proto.top
        ),
        duration_us=proto.duration_us,
    )


def decode_description(data: bytes) -> Description:
    """`Describe`'s answer."""
    proto = _parse("DescribeResponse", data)
    fields = {name: getattr(proto, name) for name in Description.__slots__}
    return Description(**{**fields, "features": tuple(proto.features)})


def encode_limits(limits: Limits) -> bytes:
    """`Configure`'s request."""
    fields = {name: getattr(limits, name) for name in Limits.__slots__}
    return bytes(_MESSAGES["ConfigureRequest"](**fields).SerializeToString())


def decode_num_blocks(data: bytes) -> int:
    """`Configure`'s answer."""
    return int(_parse("ConfigureResponse", data).num_blocks)


# === parts ===


def _parse(name: str, data: bytes) -> Any:
    try:
        return _MESSAGES[name].FromString(data)
    except message.DecodeError as error:
        raise InvalidRequestError(f"not a {name} message: {error}") from error


def _unpack(data: bytes, dtype: np.dtype[Any], step_id: int) -> NDArray[Any]:
    if len(data) % dtype.itemsize != 0:
        raise InvalidStepError(step_id, f"a packed array has {len(data)} bytes, no multiple of {dtype.itemsize}")
    return np.frombuffer(data, dtype)


def _pack(array: NDArray[Any], dtype: np.dtype[Any]) -> bytes:
    return array.astype(dtype, copy=False).tobytes()


def _pairs(flat: U32Array, step_id: int) -> U32Array:
    if flat.size % 2 != 0:
        raise InvalidStepError(step_id, f"block_copies has {flat.size} elements, which are no pairs")
    return flat.reshape(-1, 2)


def _row_start(proto: Any, step_id: int) -> RowStart:
    fields = {name: getattr(proto.sampling, name) for name in _SCALARS_OF_SAMPLING}
    sampling = Sampling(
        **fields,
        bias_tokens=_unpack(proto.sampling.bias_tokens, _U32, step_id),
        bias_values=_unpack(proto.sampling.bias_values, _F32, step_id),
        stop_tokens=_unpack(proto.sampling.stop_tokens, _U32, step_id),
    )
    if sampling.bias_tokens.size != sampling.bias_values.size:
        raise InvalidStepError(step_id, f"slot {proto.slot}: bias_tokens and bias_values differ in length")
    history = _unpack(proto.history, _U32, step_id)
    if proto.num_prompt_tokens > history.size and history.size > 0:
        raise InvalidStepError(step_id, f"slot {proto.slot}: num_prompt_tokens is longer than the history")
    return RowStart(proto.slot, sampling, proto.num_generated, history, proto.num_prompt_tokens)


def _row_start_message(row: RowStart) -> Any:
    sampling = _MESSAGES["Sampling"](
        **{name: getattr(row.sampling, name) for name in _SCALARS_OF_SAMPLING},
        bias_tokens=_pack(row.sampling.bias_tokens, _U32),
        bias_values=_pack(row.sampling.bias_values, _F32),
        stop_tokens=_pack(row.sampling.stop_tokens, _U32),
    )
    return _MESSAGES["RowStart"](
        slot=row.slot,
        sampling=sampling,
        num_generated=row.num_generated,
        history=_pack(row.history, _U32),
        num_prompt_tokens=row.num_prompt_tokens,
    )


_SCALARS_OF_SAMPLING: Final = tuple(
    name for name in Sampling.__slots__ if name not in {"bias_tokens", "bias_values", "stop_tokens"}
)


def _check_rows(step: Step) -> None:
    """Row arrays of one length, at least one token each, and as many ids as the rows say."""
    lengths = {step.slots.size, step.positions.size, step.num_tokens.size, step.samples.size}
    if len(lengths) != 1:
        raise InvalidStepError(step.id, f"slots, positions, num_tokens and flags differ in length: {sorted(lengths)}")
    if step.num_tokens.size > 0 and int(step.num_tokens.min()) == 0:
        raise InvalidStepError(step.id, "a row has no tokens")
    if bool(np.any((step.num_tokens != 1) & ~step.has_tokens)):
        raise InvalidStepError(step.id, "a row that continues its last sampled token computes more than that one")
    expected = int(step.num_tokens[step.has_tokens].sum(dtype=np.int64))
    if expected != step.tokens.size:
        raise InvalidStepError(step.id, f"its rows take {expected} input ids, but {step.tokens.size} are given")
