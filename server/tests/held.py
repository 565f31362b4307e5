"""What a model holds of its checkpoint."""

from anaphora.layers.parameters import Part
from torch import Tensor


def held(part: Part) -> Tensor:
    """The parameter, or this part of it, unpacked."""
    return part.destination if isinstance(part.destination, Tensor) else part.destination.unpack()
