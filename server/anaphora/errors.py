"""Everything that a shard raises on purpose: one small tree. What a user can put right says what, where, and how."""


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
