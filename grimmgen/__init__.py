"""grimmgen: train a recurrent language model, written from scratch, on folk tales, and tell new stories.

    >>> import grimmgen
    >>> for event in grimmgen.train("sampler", budget=0.1, hidden=16):
    ...     pass
    >>> story = grimmgen.load("latest").generate("the king", length=80)
    >>> story.startswith("the king")
    True

The command line does the same through the same functions; what is not named here is free to change.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grimmgen.api import evaluate, load, train
    from grimmgen.configuration import Configuration
    from grimmgen.corpus import fetch, open_corpus
    from grimmgen.decoding import Decoding
    from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
    from grimmgen.events import Evaluated, Finished, RateDecayed, Recovered, Saved, Started, Stepped
    from grimmgen.generation import Storyteller
    from grimmgen.training import Training
    from grimmgen.vocabulary import Vocabulary

    __version__: str

__all__ = [
    "Configuration",
    "Decoding",
    "Evaluated",
    "Finished",
    "GrimmgenError",
    "IntegrityError",
    "RateDecayed",
    "Recovered",
    "Saved",
    "Started",
    "Stepped",
    "Storyteller",
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
    "Decoding": "decoding",
    "Evaluated": "events",
    "Finished": "events",
    "GrimmgenError": "errors",
    "IntegrityError": "errors",
    "RateDecayed": "events",
    "Recovered": "events",
    "Saved": "events",
    "Started": "events",
    "Stepped": "events",
    "Storyteller": "generation",
    "Training": "training",
    "UsageError": "errors",
    "Vocabulary": "vocabulary",
    "evaluate": "api",
    "fetch": "corpus",
    "load": "api",
    "open_corpus": "corpus",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `import grimmgen` waits for neither PyTorch nor NumPy, nor, for its own version, for
    # what reads the metadata of packages: a fifth of `grimmgen --help`.
    if name == "__version__":
        from importlib.metadata import version

        return version("grimmgen")
    if name in _HOMES:
        return getattr(import_module(f"grimmgen.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'grimmgen' has no attribute {name!r}")
