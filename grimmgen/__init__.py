"""grimmgen: train a recurrent language model, written from scratch, on folk tales, and generate new stories.

    >>> import grimmgen
    >>> for event in grimmgen.train("sampler", budget=0.1, hidden=16):
    ...     pass
    >>> story = grimmgen.load("latest").generate("the king", length=80)
    >>> story.startswith("the king")
    True

The command line uses the same functions. Names that are not listed here may change.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grimmgen.api import evaluate, load, train
    from grimmgen.configuration import Configuration
    from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
    from grimmgen.runs.events import (
        Evaluated,
        Finished,
        PlatformChanged,
        RateDecayed,
        Recovered,
        Saved,
        Started,
        Stepped,
    )
    from grimmgen.sampling.generator import TextGenerator
    from grimmgen.sampling.options import SamplingOptions
    from grimmgen.text.corpus import open_corpus
    from grimmgen.text.fetch import fetch
    from grimmgen.text.vocabulary import Vocabulary
    from grimmgen.training.session import Training

    __version__: str

__all__ = [
    "Configuration",
    "Evaluated",
    "Finished",
    "GrimmgenError",
    "IntegrityError",
    "PlatformChanged",
    "RateDecayed",
    "Recovered",
    "SamplingOptions",
    "Saved",
    "Started",
    "Stepped",
    "TextGenerator",
    "Training",
    "UsageError",
    "Vocabulary",
    "__version__",
    "evaluate",
    "fetch",
    "load",
    "open_corpus",
    "train",
]

_HOMES = {
    "Configuration": "configuration",
    "SamplingOptions": "sampling.options",
    "Evaluated": "runs.events",
    "Finished": "runs.events",
    "GrimmgenError": "errors",
    "IntegrityError": "errors",
    "PlatformChanged": "runs.events",
    "RateDecayed": "runs.events",
    "Recovered": "runs.events",
    "Saved": "runs.events",
    "Started": "runs.events",
    "Stepped": "runs.events",
    "TextGenerator": "sampling.generator",
    "Training": "training.session",
    "UsageError": "errors",
    "Vocabulary": "text.vocabulary",
    "evaluate": "api",
    "fetch": "text.fetch",
    "load": "api",
    "open_corpus": "text.corpus",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: `import grimmgen` imports neither PyTorch nor NumPy, nor importlib.metadata, which
    # would take a fifth of the time of `grimmgen --help`.
    if name == "__version__":
        from importlib.metadata import version

        return version("grimmgen")
    if name in _HOMES:
        return getattr(import_module(f"grimmgen.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'grimmgen' has no attribute {name!r}")
