"""grimmgen: train a recurrent language model, written from scratch, on folk tales, and generate new stories.

    >>> import grimmgen
    >>> model = grimmgen.fit("sampler", budget="0.1s", hidden=16)
    >>> model.generate("the king", length=80).startswith("the king")
    True

`dir(grimmgen)` lists all names; others may change.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grimmgen import nn
    from grimmgen.api import Model, fit, load, train
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
    "Model",
    "PlatformChanged",
    "RateDecayed",
    "Recovered",
    "SamplingOptions",
    "Saved",
    "Started",
    "Stepped",
    "Training",
    "UsageError",
    "Vocabulary",
    "__version__",
    "fetch",
    "fit",
    "load",
    "nn",
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
    "Model": "api",
    "PlatformChanged": "runs.events",
    "RateDecayed": "runs.events",
    "Recovered": "runs.events",
    "Saved": "runs.events",
    "Started": "runs.events",
    "Stepped": "runs.events",
    "Training": "training.session",
    "UsageError": "errors",
    "Vocabulary": "text.vocabulary",
    "fetch": "text.fetch",
    "fit": "api",
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
    if name == "nn":
        return import_module("grimmgen.nn")
    if name in _HOMES:
        return getattr(import_module(f"grimmgen.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'grimmgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__]
