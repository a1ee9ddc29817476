"""Three calls for Python: train, load, evaluate. They put together what the other modules do.

`load` and what it returns need no PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from grimmgen.configuration import Configuration
from grimmgen.sampling.generator import TextGenerator
from grimmgen.text.corpus import open_corpus

if TYPE_CHECKING:
    from grimmgen.evaluation.scores import Evaluation
    from grimmgen.runs.events import Event


def train(
    corpus: str = "grimm", *, run: str | None = None, device: str = "auto", **options: Any
) -> Iterator[Event]:
    """Train a new run; a generator of what happens (`grimmgen.runs.events`).

    Args:
        corpus: `grimm`, `sampler`, or the path of a text file or directory.
        run: its name; None makes one up.
        device: `auto`, `cpu` or `cuda`.
        options: of `Configuration`, as in `train("sampler", hidden=256, epochs=3)`.

    Raises:
        GrimmgenError: see `Training.begin` and `Training.events`.
    """
    from grimmgen.training.session import Training

    return Training.begin(open_corpus(corpus), Configuration(**options), run=run, device=device).events()


def load(run_or_path: str = "latest") -> TextGenerator:
    """A trained model: that of a run, of the latest one, or of a checkpoint file.

    Raises:
        GrimmgenError: there is none, or it is not what it should be.
    """
    return TextGenerator.load(run_or_path)


def evaluate(teller: TextGenerator, texts: Iterable[str], device: str = "auto") -> Evaluation:
    """How well a model foretells these texts: one score a text, and the total of all.

    Raises:
        GrimmgenError: there is no text, or no such device.
    """
    from grimmgen.evaluation.static import encode_for_evaluation
    from grimmgen.evaluation.static import evaluate as score
    from grimmgen.network.model import LanguageModel, choose_device

    checkpoint = teller.checkpoint
    model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary)).to(choose_device(device))
    model.load_weights(checkpoint.weights)
    named = ((f"text {number}", text) for number, text in enumerate(texts, 1))
    return score(model, encode_for_evaluation(named, checkpoint.vocabulary))
