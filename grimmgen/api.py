"""The functions of the Python interface: train, load, evaluate.

`load` and what it returns need no PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from grimmgen.configuration import Configuration, base_options
from grimmgen.runs.registry import LATEST, load_model
from grimmgen.sampling.generator import TextGenerator
from grimmgen.text.corpus import open_corpus

if TYPE_CHECKING:
    from grimmgen.evaluation.scores import Evaluation
    from grimmgen.runs.events import Event


def train(
    corpus: str = "grimm",
    *,
    run: str | None = None,
    device: str = "auto",
    base: str | None = None,
    **options: Any,
) -> Iterator[Event]:
    """Train a new run; a generator of its events (`grimmgen.runs.events`).

    Args:
        corpus: `grimm`, `sampler`, or the path of a text file or directory.
        run: name of the run; None generates one.
        device: `auto`, `cpu` or `cuda`.
        base: the run, or the path of the checkpoint, whose weights training starts from; its architecture and its
            tokens are kept.
        options: of `Configuration`, as in `train("sampler", hidden=256, epochs=3)`.

    Raises:
        GrimmgenError: see `Training.begin` and `Training.events`.
    """
    from grimmgen.training.session import Training

    model = None if base is None else load_model(base)
    if model is not None:
        options = base_options(model.checkpoint.configuration, options, options)
    training = Training.begin(open_corpus(corpus), Configuration(**options), run=run, device=device, base=model)
    return training.events()


def load(run_or_path: str = LATEST) -> TextGenerator:
    """Load the model of a run, of the latest run, or of a checkpoint file.

    Raises:
        GrimmgenError: there is no such run or file.
        IntegrityError: the checkpoint is damaged.
    """
    return TextGenerator.load(run_or_path)


def evaluate(generator: TextGenerator, texts: Iterable[str], device: str = "auto") -> Evaluation:
    """Evaluate a model on texts; returns the score of each text, and of all together.

    Args:
        generator: the model.
        texts: one string per document.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        GrimmgenError: there is no text, or no such device.
    """
    from grimmgen.evaluation import static
    from grimmgen.network.model import LanguageModel, choose_device

    checkpoint = generator.checkpoint
    model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary)).to(choose_device(device))
    model.load_weights(checkpoint.weights)
    named = ((f"text {number}", text) for number, text in enumerate(texts, 1))
    return static.evaluate(model, static.encode_for_evaluation(named, checkpoint.vocabulary))
