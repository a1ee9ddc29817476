"""The names and shapes of a model's weights, which follow from its configuration. Needs neither PyTorch nor NumPy.

H  hidden units    V  vocabulary size    E  embedding size
"""

from __future__ import annotations

import math

from grimmgen.configuration import Configuration
from grimmgen.network.cells import Sizes, cells

Shapes = dict[str, tuple[int, ...]]


def layer_shapes(configuration: Configuration, inputs: int) -> Shapes:
    """The weights of one layer that reads vectors of this size; see `CellSpec.shapes`."""
    return cells()[configuration.cell].shapes(Sizes(configuration.hidden, inputs, configuration.rounds))


def weight_shapes(configuration: Configuration, vocabulary_size: int) -> Shapes:
    """The weights of a model.

    The first layer reads one-hot tokens (V numbers) or the embedding [V, E], the other layers H numbers. The output
    layer has a weight [H, V], or where the embedding is tied a projection [H, E], and a bias [V].
    """
    H, E, V = configuration.hidden, configuration.embedding, vocabulary_size
    shapes: Shapes = {"embedding": (V, E)} if E else {}
    for layer in range(configuration.layers):
        of_layer = layer_shapes(configuration, (E or V) if layer == 0 else H)
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    if configuration.tied:
        shapes["output.projection"] = (H, E)
    else:
        shapes["output.weight"] = (H, V)
    shapes["output.bias"] = (V,)
    return shapes


def token_axes(configuration: Configuration) -> dict[str, int]:
    """The weights that have a row or a column for each token, and the axis along which they have them."""
    axes = {"embedding": 0} if configuration.embedding else {"layers.0.input_weight": 0}
    if not configuration.tied:
        axes["output.weight"] = 1
    return {**axes, "output.bias": 0}


def parameter_count(configuration: Configuration, vocabulary_size: int) -> int:
    """The number of a model's parameters."""
    return sum(math.prod(shape) for shape in weight_shapes(configuration, vocabulary_size).values())
