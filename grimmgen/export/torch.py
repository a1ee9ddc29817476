"""Models as state dicts of PyTorch's own modules: `nn.Embedding`, `nn.LSTM` or `nn.GRU`, and `nn.Linear`.

Written as safetensors, without PyTorch and without a pickle.

    H  hidden units    V  vocabulary size    E  embedding size    G  gates
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from grimmgen.errors import UsageError
from grimmgen.export.metadata import metadata_of
from grimmgen.network.backends.numpy import InferenceWeights
from grimmgen.network.cells import cells
from grimmgen.runs.checkpoint import Checkpoint, Tensors

# The modules of PyTorch, by the cells that they have.
_MODULES = {"lstm": "LSTM", "coupled": "LSTM", "gru": "GRU"}


def to_torch(checkpoint: Checkpoint) -> bytes:
    """Convert a model to a state dict in a safetensors file.

    Its parts are `embedding` (nn.Embedding), `rnn` (nn.LSTM or nn.GRU) and `output` (nn.Linear). PyTorch has no
    layer that reads ids and no tied projection: one-hot input becomes an embedding, and the two weights of a tied
    output become their product, so that the state dict may be larger than the checkpoint.

    Args:
        checkpoint: the model.

    Returns:
        The file; its metadata is that of `metadata_of`.

    Raises:
        UsageError: PyTorch has no module for the cell.
    """
    configuration = checkpoint.configuration
    _module(checkpoint)
    weights = InferenceWeights.of(configuration, checkpoint.weights)
    embedding, input_weight = checkpoint.weights.get("embedding"), weights.layers[0]["input_weight"]
    if embedding is None:
        # A product with the identity is exact. It is put where it is smaller.
        V, columns = input_weight.shape
        one_hot = np.eye(min(V, columns), dtype=np.float32)
        embedding, input_weight = (one_hot, input_weight) if columns >= V else (input_weight, one_hot)
    tensors: Tensors = {"embedding.weight": embedding}
    for depth, layer in enumerate(weights.layers):
        bias, recurrent_bias = layer["bias"], np.zeros_like(layer["bias"])
        if "recurrent_bias" in layer:
            # Of the candidate, the last gate, alone: PyTorch adds the two biases of the other gates.
            recurrent_bias[-configuration.hidden :] = layer["recurrent_bias"]
        of_layer = {
            f"rnn.weight_ih_l{depth}": (layer["input_weight"] if depth else input_weight).T,
            f"rnn.weight_hh_l{depth}": layer["recurrent_weight"].T,
            f"rnn.bias_ih_l{depth}": bias,
            f"rnn.bias_hh_l{depth}": recurrent_bias,
        }
        if configuration.cell == "coupled":
            # i = 1 - σ(z) = σ(-z), where z is that of the forget gate, the first one.
            first = slice(configuration.hidden)
            of_layer = {name: np.concatenate([-rows[first], rows]) for name, rows in of_layer.items()}
        tensors |= of_layer
    tensors |= {"output.weight": weights.output_weight.T, "output.bias": weights.output_bias}
    return safetensors.numpy.save(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
        metadata=metadata_of(checkpoint),
    )


def loading_code(checkpoint: Checkpoint, path: Path) -> str:
    """Python code that loads the file of `to_torch` into PyTorch's modules and evaluates the model once.

    Args:
        checkpoint: the model.
        path: of the file.

    Raises:
        UsageError: PyTorch has no module for the cell.
    """
    H, layers = checkpoint.configuration.hidden, checkpoint.configuration.layers
    return f"""\
import torch
from safetensors.torch import load_file

weights = load_file({json.dumps(str(path), ensure_ascii=False)})
V, E = weights["embedding.weight"].shape
parts = torch.nn.Embedding(V, E), torch.nn.{_module(checkpoint)}(E, {H}, num_layers={layers}), torch.nn.Linear({H}, V)
model = torch.nn.ModuleDict(dict(zip(("embedding", "rnn", "output"), parts)))
model.load_state_dict(weights)
hidden, state = model["rnn"](model["embedding"](torch.tensor([[1]])))  # tokens [T, B]; 1 is <end>, 0 <unk>
logits = model["output"](hidden)  # of the token after each, [T, B, V]
"""


def _module(checkpoint: Checkpoint) -> str:
    cell = checkpoint.configuration.cell
    if cell not in _MODULES:
        raise UsageError(f"torch.nn has no {cells()[cell].title}", "export it with --onnx")
    return _MODULES[cell]
