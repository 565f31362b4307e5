"""Everything that a shard raises on purpose: one small tree, and its only mapping to gRPC statuses and exit codes.

What a user can put right says what, where, and how. What is not of this tree is a fault of ours, or of the device.
"""

from typing import Final

import grpc


class ShardError(Exception):
    """The shard cannot do what it was asked."""


class ModelFileError(ShardError):
    """A model's files are missing, damaged, or not what the configuration says."""


class MissingTensorError(ModelFileError):
    """Tensors that the model needs are in none of its files."""


class UnexpectedTensorError(ModelFileError):
    """The files hold tensors that the model has no place for: it would not compute what they were trained for."""


class TensorShapeError(ModelFileError):
    """A tensor does not have the shape that the configuration implies."""


class UnsupportedModelError(ModelFileError):
    """An architecture, or an option of one, that is not implemented here."""


class InvalidRequestError(ShardError):
    """The router asked for something that cannot be done, whatever the shard's state."""


class InvalidStepError(InvalidRequestError):
    """A step contradicts itself, or the sizes that were configured. Nothing of it was executed."""

    def __init__(self, step_id: int, problem: str) -> None:
        """`problem` says what is wrong with step `step_id`."""
        super().__init__(f"step {step_id}: {problem}")


class NotConfiguredError(ShardError):
    """`Execute` came before `Configure`."""


class PoolSizeError(ShardError):
    """The KV pool that was asked for does not fit, or nothing is left for one."""


class SupersededError(ShardError):
    """A newer `Execute` stream or a `Configure` took over: one router drives a shard at a time."""


class StepFailedError(ShardError):
    """A step raised what nobody expected; the slots were cleared."""

    def __init__(self, step_id: int, error: BaseException) -> None:
        """`error` is what step `step_id` raised."""
        super().__init__(f"step {step_id} failed: {type(error).__name__}: {error}")


_STATUS: Final[dict[type[ShardError], grpc.StatusCode]] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    NotConfiguredError: grpc.StatusCode.FAILED_PRECONDITION,
    PoolSizeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    SupersededError: grpc.StatusCode.ABORTED,
}

EXIT_FAILURE: Final = 1
EXIT_MODEL_FILE: Final = 3


def status_of(error: BaseException) -> grpc.StatusCode:
    """The gRPC status that tells a router of `error`; INTERNAL for what is not its doing."""
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            return status
    return grpc.StatusCode.INTERNAL


def exit_code_of(error: BaseException) -> int:
    """The exit code of a shard that `error` ended (see the launcher's table of exit codes)."""
    return EXIT_MODEL_FILE if isinstance(error, ModelFileError) else EXIT_FAILURE
