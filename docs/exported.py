"""Generate a story with an exported model, without grimmgen.

    grimmgen export --onnx tales.onnx         python docs/exported.py tales.onnx --prompt "the king"
    grimmgen export --torch tales.safetensors python docs/exported.py tales.safetensors --prompt "the king"

Needs NumPy, and ONNX Runtime for the one (the window form, of --onnx-window, generates as well), PyTorch for the other.
Samples from the three most probable tokens and the end, as the tutorial does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Reads a token id; returns the logits of the token after it, [V].
Reader = Callable[[int], NDArray[np.float32]]


def onnx_model(path: Path) -> tuple[Reader, Mapping[str, str]]:
    """The model of an ONNX file, and its metadata."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    tokens, *states = session.get_inputs()
    # All but the number of layers and of hidden units is 1: one row, and in the window form one time step.
    state = {s.name: np.zeros([n if isinstance(n, int) else 1 for n in s.shape], np.float32) for s in states}

    def read(token: int) -> NDArray[np.float32]:
        ids = np.full([1] * len(tokens.shape), token)
        logits, *after = session.run(None, {"tokens": ids, **state})
        state.update(zip(state, after, strict=True))
        return np.asarray(logits, np.float32).ravel()

    return read, session.get_modelmeta().custom_metadata_map


def torch_model(path: Path) -> tuple[Reader, Mapping[str, str]]:
    """The model of a state dict for `torch.nn`, and its metadata."""
    import torch
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    V, E = weights["embedding.weight"].shape
    H = weights["output.weight"].shape[1]
    layers = sum(name.startswith("rnn.weight_ih") for name in weights)
    recurrent = torch.nn.LSTM if len(weights["rnn.bias_ih_l0"]) == 4 * H else torch.nn.GRU
    parts = torch.nn.Embedding(V, E), recurrent(E, H, num_layers=layers), torch.nn.Linear(H, V)
    model = torch.nn.ModuleDict(dict(zip(("embedding", "rnn", "output"), parts, strict=True)))
    model.load_state_dict(weights)
    state: Any = None

    @torch.inference_mode()
    def read(token: int) -> NDArray[np.float32]:
        nonlocal state
        hidden, state = model["rnn"](model["embedding"](torch.tensor([[token]])), state)
        logits: NDArray[np.float32] = model["output"](hidden).ravel().numpy()
        return logits

    return read, metadata


def cut(prompt: str, vocabulary: list[str], n: int | None) -> list[str]:
    """Cut a prompt into n-grams; of words and byte pairs (n is None), take the longest at each place."""
    if n is not None:
        return [prompt[i : i + n] for i in range(0, len(prompt), n)]
    tokens, pieces = set(vocabulary[2:]), list[str]()
    longest = max(map(len, tokens))
    while prompt:
        lengths = range(min(longest, len(prompt)), 0, -1)
        length = next((length for length in lengths if prompt[:length] in tokens), 1)
        pieces.append(prompt[:length])
        prompt = prompt[length:]
    return pieces


def main() -> None:
    """Generate a story."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="An export of grimmgen.")
    parser.add_argument("--prompt", default="", help="Text that the story begins with, of whole tokens.")
    parser.add_argument("--length", type=int, default=500, help="Maximum number of tokens.")
    parser.add_argument("--greedy", action="store_true", help="Always take the most probable token.")
    arguments = parser.parse_args()
    read, metadata = (onnx_model if arguments.file.suffix == ".onnx" else torch_model)(arguments.file)
    model = json.loads(metadata["model"])
    vocabulary, text = model["vocabulary"], model["text"]
    unknown, end = 0, 1
    prompt = arguments.prompt.lower() if text["lower"] else arguments.prompt
    pieces = cut(prompt, vocabulary, text["ngram"])
    logits = read(end)  # <end> precedes every story
    for piece in pieces:
        logits = read(vocabulary.index(piece) if piece in vocabulary else unknown)
    if not prompt and model["beginnings"]:
        others = np.delete(np.arange(len(logits)), model["beginnings"])
        logits[others] = -np.inf
    random = np.random.default_rng()
    for _ in range(arguments.length):
        logits[unknown] = -np.inf
        order = np.argsort(-logits, kind="stable")
        likely = order[:1] if arguments.greedy else np.union1d(order[:3], end)
        p = np.exp(logits[likely].astype(np.float64) - logits.max())
        token = int(random.choice(likely, p=p / p.sum()))
        if token == end:
            break
        pieces.append(vocabulary[token])
        logits = read(token)
    print("".join(pieces))


if __name__ == "__main__":
    main()
