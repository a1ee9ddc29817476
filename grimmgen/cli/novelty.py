"""Show how much of a text occurs in a run's training stories: `--novelty` of `eval` and `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from grimmgen.cli import console, options

if TYPE_CHECKING:
    from grimmgen.evaluation.novelty import Copy, Novelty
    from grimmgen.runs.registry import TrainedModel
    from grimmgen.text.corpus import Document

# Characters of a copy that are shown; --json has the whole copy.
_SHOWN = 240
# With more texts than this, their longest copies are shown by --json only.
_MAX_TEXTS = 12


class NoveltyReport:
    """Measures texts against the training stories of a model.

    Args:
        model: of a run.
        part: the part of the run's split that is the control.

    Raises:
        UsageError: the model is a checkpoint file, which does not include its training set.
    """

    def __init__(self, model: TrainedModel, part: options.Part = "valid") -> None:
        from grimmgen.evaluation.novelty import training_index

        self._index = training_index(model)
        self._configuration = model.checkpoint.configuration
        self._documents = model.split().parts[part]
        self.part = part

    def measure(self, texts: Sequence[tuple[str, str]] = ()) -> list[Novelty]:
        """The novelty of each of these (name, text) pairs, or of each control story if there are none."""
        from grimmgen.evaluation.novelty import measure

        texts = texts or [(document.name, document.read()) for document in self._documents]
        return [measure(self._index, name, self._normalise(text)) for name, text in texts]

    @cached_property
    def control(self) -> Novelty:
        """The novelty of all control stories together."""
        from grimmgen.evaluation.novelty import measure_together

        texts = [self._normalise(document.read()) for document in self._documents]
        return measure_together(self._index, f"{self.part} stories", texts)

    def to_json(self, text: str) -> dict[str, Any]:
        """The novelty of a generated text and of the control, for its JSON document."""
        [novelty] = self.measure([("generated", text)])
        return {"novelty": _to_json(novelty), "control": _to_json(self.control)}

    def print_summary(self, text: str) -> None:
        """Print the novelty of a generated text in three lines, on standard error."""
        [novelty], control = self.measure([("generated", text)]), self.control
        console.note(
            f"longest copy: {_position(novelty.longest)}: {_quoted(novelty.longest)}"
            if novelty.longest
            else "longest copy: none"
        )
        copied = ", ".join(
            f"{_share(share)} in copies of {least} or more ({_share(control.copied[least])})"
            for least, share in novelty.copied.items()
        )
        console.note(f"characters: {copied}; in brackets {control.name}")
        novel = ", ".join(
            f"{_share(share)} of length {n} ({_share(control.novel[n])})" for n, share in novelty.novel.items()
        )
        console.note(f"new n-grams: {novel}")

    def _normalise(self, text: str) -> str:
        from grimmgen.text.normalisation import normalise

        return normalise(text, self._configuration.normalisation)


def show_novelty(model: TrainedModel, documents: Sequence[Document], part: options.Part, json: bool) -> None:
    """Print the novelty of these documents, or of each control story if there are none, and of the control."""
    report = NoveltyReport(model, part)
    texts = report.measure([(document.name, document.read()) for document in documents])
    if json:
        value = {"run": model.name, "split": part, "texts": [_to_json(text) for text in texts]}
        console.document({**value, "control": _to_json(report.control)})
    else:
        _show_tables(model.name, texts, report.control)


def _to_json(novelty: Novelty) -> dict[str, Any]:
    longest = novelty.longest
    return {
        "name": novelty.name,
        "characters": novelty.characters,
        "longest_copy": None
        if longest is None
        else {
            "characters": len(longest.text),
            "begin": longest.begin,
            "story": longest.document,
            "place": longest.offset,
            "line": longest.line,
            "text": longest.text,
        },
        "copied": {str(least): share for least, share in novelty.copied.items()},
        "novel": {str(n): share for n, share in novelty.novel.items()},
    }


def _show_tables(run: str, texts: Sequence[Novelty], control: Novelty) -> None:
    everything = [*texts, control]
    shares = [f"≥ {least}" for least in control.copied]
    heads = ["text", "characters", "longest", *shares]
    rows = [[n.name, f"{n.characters:,}", f"{_length(n):,}", *map(_share, n.copied.values())] for n in everything]
    title = f"longest copy from the training stories of {run}, and characters in copies of that length"
    console.table(heads, rows, title, right=heads[1:], marked=len(texts), dispensable=["characters", *shares[::2]])
    heads = ["text", *map(str, control.novel)]
    rows = [[n.name, *map(_share, n.novel.values())] for n in everything]
    title = "n-grams that are in no training story, by length"
    console.table(heads, rows, title, right=heads[1:], marked=len(texts), dispensable=["4", "32", "12", "24"])
    for novelty in everything:
        if novelty.longest and (novelty is control or len(texts) <= _MAX_TEXTS):
            console.sentence(f"{novelty.name}: {_position(novelty.longest)}: {_quoted(novelty.longest)}")


def _length(novelty: Novelty) -> int:
    return len(novelty.longest.text) if novelty.longest else 0


def _position(copy: Copy) -> str:
    # Without line ends (--newlines space), everything is in line 1.
    line = f"line {copy.line:,}, " if copy.line > 1 else ""
    source = f"the story {copy.document}, {line}character {copy.offset:,}"
    return f"{len(copy.text):,} characters at {copy.begin:,}, from {source}"


def _quoted(copy: Copy) -> str:
    text = " ".join(copy.text.split())
    return f"“{text[:_SHOWN]}{' …' if len(text) > _SHOWN else ''}”"


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
