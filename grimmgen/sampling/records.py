"""Records of generated stories: all that reproduces a story, and its verification.

`grimmgen generate --json` prints records, `grimmgen generate --replay` verifies them. A record may come from anyone.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import zip_longest
from typing import Any

import numpy as np

from grimmgen.configuration import options_of
from grimmgen.errors import IntegrityError, UsageError
from grimmgen.io import files
from grimmgen.network import backends
from grimmgen.sampling.generator import Generation, TextGenerator
from grimmgen.sampling.options import SamplingOptions

# In bytes.
LARGEST = 64 << 20
_REMEDY = "give a file that `grimmgen generate --json` wrote"
_OPTIONS = options_of(SamplingOptions)
# What a story depends on besides prompt and options: its name in messages, and what to do where it differs, the most
# likely cause of another story first.
_ORIGIN = {
    "checkpoint_sha256": ("the checkpoint", "give the recorded checkpoint with --run"),
    "grimmgen": ("the version of grimmgen", "install grimmgen {}"),
    "backend": ("the backend", "set GRIMMGEN_KERNEL={}"),
    "platform": ("the platform", "replay it on {}"),
    "numpy": ("the version of NumPy", "install numpy {}"),
}


def to_record(generator: TextGenerator, generation: Generation) -> dict[str, Any]:
    """Describe a story as JSON, with all that reproduces it.

    Args:
        generator: that generated the story.
        generation: the story, whose text and n-grams were kept.
    """
    return {
        "run": generator.name,
        **({"others": [other.name for other in generator.others]} if generator.others else {}),
        **_origin(generator),
        "prompt": generation.prompt,
        "decoding": asdict(generation.options),
        "text": generation.text,
        "ending": generation.ending,
        "log_probability": generator.log_probability(generation),
    }


@dataclass(frozen=True)
class Record:
    """A recorded story.

    Attributes:
        run: of the model, or the path of its checkpoint.
        origin: what is recorded of the things that a story depends on; older records have less.
        prompt: of the story.
        options: of the story, with its random seed.
        text: the prompt and what was generated.
        ending: why generation stopped.
        others: more models of an ensemble, as `run`.
    """

    run: str
    origin: Mapping[str, str]
    prompt: str
    options: SamplingOptions
    text: str
    ending: str
    others: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All models, the first one first."""
        return [self.run, *self.others]

    @classmethod
    def parse_all(cls, content: bytes, source: str) -> list[Record]:
        """Parse the output of `grimmgen generate --json`: one record, or a list of them.

        Args:
            content: as it was read.
            source: name in messages.

        Raises:
            IntegrityError: it is something else, or has an option that this version does not know.
        """
        try:
            value = files.parse_json(content)
        except (ValueError, RecursionError):
            raise IntegrityError(f"{source} is not JSON", _REMEDY) from None
        values = value if isinstance(value, list) else [value]
        if not values:
            raise IntegrityError(f"{source} has no record", _REMEDY)
        return [cls._parse(one, source) for one in values]

    @classmethod
    def _parse(cls, value: object, source: str) -> Record:
        match value:
            case {"run": str(run), "prompt": str(prompt), "decoding": dict(decoding), "text": str(text), **others}:
                pass
            case _:
                raise IntegrityError(f"{source} is not the record of a story", _REMEDY)
        for name, stored in decoding.items():
            if name not in _OPTIONS:
                raise IntegrityError(f"{source} has an unknown option {name[:80]!r}", "upgrade grimmgen")
            if not _OPTIONS[name].accepts(stored):
                raise IntegrityError(f"{source}: {name} has the wrong type", _REMEDY)
        try:
            options = SamplingOptions(**decoding)
        except UsageError as error:
            raise IntegrityError(f"{source}: {error.what}", _REMEDY) from None
        more = others.get("others", [])
        if not (isinstance(more, list) and all(isinstance(name, str) for name in more)):
            raise IntegrityError(f"{source} is not the record of a story", _REMEDY)
        origin = {name: str(others[name]) for name in _ORIGIN if name in others}
        return cls(run, origin, prompt, options, text, str(others.get("ending")), tuple(more))


def replay(generator: TextGenerator, record: Record, source: str) -> tuple[Generation, list[str]]:
    """Generate a recorded story again.

    Args:
        generator: the model of the record.
        record: the story.
        source: name in messages.

    Returns:
        The story, and what differs from its origin although the text is the same, in words.

    Raises:
        IntegrityError: the text differs; the message says what else does.
        UsageError: the model cannot generate with these options.
    """
    here = _origin(generator)
    differing = [name for name, recorded in record.origin.items() if here[name] != recorded]
    differences = [f"{_ORIGIN[n][0]} differs ({record.origin[n]}, here {here[n]})" for n in differing]
    stream = generator.start(record.prompt, record.options, keep=True)
    position = 0
    for [piece] in stream:
        if not record.text.startswith(piece, position):
            pairs = enumerate(zip_longest(record.text[position : position + len(piece)], piece))
            position += next(number for number, (old, new) in pairs if old != new)
            break
        position += len(piece)
    [generation] = stream.generations
    if position == len(record.text) and generation.ending == record.ending:
        return generation, differences
    unknown = [name for name in _ORIGIN if name not in record.origin]
    if differing:
        remedy = _ORIGIN[differing[0]][1].format(record.origin[differing[0]])
    elif unknown:
        differences = [f"the record does not say {' nor '.join(_ORIGIN[name][0] for name in unknown)}"]
        remedy = "replay it where it was generated"
    else:
        differences = ["checkpoint, versions, backend and platform are those of the record"]
        remedy = "the record was changed: take the original"
    raise IntegrityError(
        f"{source} is not reproduced: the story differs from character {position + 1} on; {', '.join(differences)}",
        remedy,
    )


def _origin(generator: TextGenerator) -> dict[str, str]:
    """What a story depends on besides prompt and options; the keys are those of `_ORIGIN`."""
    return {
        "checkpoint_sha256": " ".join(m.checkpoint.sha256 for m in (generator.model, *generator.others)),
        "grimmgen": version("grimmgen"),
        "numpy": np.__version__,  # draws the random numbers
        "platform": f"{platform.system()} {platform.machine()}",
        "backend": backends.stepper_kernel(generator.checkpoint.configuration.cell),
    }
