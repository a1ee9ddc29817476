"""How much of a text stands in a run's training stories: what `eval` and `generate` show for `--novelty`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from grimmgen.cli import console, options

if TYPE_CHECKING:
    from grimmgen.evaluation.novelty import Copy, Novelty
    from grimmgen.runs.registry import TrainedModel

# So much of a copy is shown; --json has all of it.
_SHOWN = 240
# The longest copies of more texts than that are left to --json.
_AT_MOST = 12


class NoveltyReport:
    """What a run has learnt from, ready to be asked.

    Args:
        model: the model of a run.
        part: the held-out stories that are the control: so much is natural.

    Raises:
        UsageError: it is the file of a checkpoint, which does not say what was learnt from.
    """

    def __init__(self, model: TrainedModel, part: options.Part = "valid") -> None:
        from grimmgen.evaluation.novelty import training_index

        self._index = training_index(model)
        run = model.run
        assert run is not None
        self.run, self.part, self._configuration = run.name, part, run.configuration
        self._held_out = run.split().parts[part]

    def measure(self, texts: Sequence[tuple[str, str]] = ()) -> list[Novelty]:
        """The novelty of each of (name, text) pairs; of the held-out stories if there are none."""
        from grimmgen.evaluation.novelty import measure

        texts = texts or [(story.name, story.read()) for story in self._held_out]
        return [measure(self._index, name, self._normalised(text)) for name, text in texts]

    @cached_property
    def control(self) -> Novelty:
        """The novelty of the held-out stories together."""
        from grimmgen.evaluation.novelty import measure_together

        held_out = [self._normalised(story.read()) for story in self._held_out]
        return measure_together(self._index, f"{self.part} stories", held_out)

    def to_json(self, text: str) -> dict[str, Any]:
        """What a story told by the run adds to its JSON document."""
        [judged] = self.measure([("told", text)])
        return {"novelty": to_json(judged), "control": to_json(self.control)}

    def print_summary(self, text: str) -> None:
        """The same in three lines, on standard error."""
        [novelty], control = self.measure([("told", text)]), self.control
        console.note(
            f"longest copy: {_place(novelty.longest)}: {_quoted(novelty.longest)}"
            if novelty.longest
            else "longest copy: none"
        )
        copied = ", ".join(
            f"{_share(share)} in copies of {least} or more ({_share(control.copied[least])})"
            for least, share in novelty.copied.items()
        )
        console.note(f"characters: {copied}; in brackets {control.name}")
        novel = ", ".join(
            f"{_share(share)} of those of {n} ({_share(control.novel[n])})" for n, share in novelty.novel.items()
        )
        console.note(f"new n-grams: {novel}")

    def _normalised(self, text: str) -> str:
        from grimmgen.text.vocabulary import normalise

        return normalise(text, self._configuration.lower, self._configuration.newlines)


def to_json(novelty: Novelty) -> dict[str, Any]:
    """One text's figures."""
    longest = novelty.longest
    return {
        "name": novelty.name,
        "characters": novelty.characters,
        "longest_copy": None
        if longest is None
        else {
            "characters": len(longest.text),
            "begin": longest.begin,
            "story": longest.story,
            "place": longest.place,
            "line": longest.line,
            "text": longest.text,
        },
        "copied": {str(least): share for least, share in novelty.copied.items()},
        "novel": {str(n): share for n, share in novelty.novel.items()},
    }


def show(run: str, judged: Sequence[Novelty], control: Novelty) -> None:
    """Tables, on standard output."""
    everything = [*judged, control]
    rows = [[n.name, f"{n.characters:,}", f"{_length(n):,}", *map(_share, n.copied.values())] for n in everything]
    shares = [f"≥ {least}" for least in control.copied]
    heads = ["text", "characters", "longest", *shares]
    title = f"longest copy from the training stories of {run}, and characters in copies that long"
    console.table(
        heads, rows, title, right=heads[1:], marked=len(judged), dispensable=["characters", *shares[::2]]
    )
    heads = ["text", *map(str, control.novel)]
    rows = [[n.name, *map(_share, n.novel.values())] for n in everything]
    title = "n-grams that no training story has, by length"
    console.table(heads, rows, title, right=heads[1:], marked=len(judged), dispensable=["4", "32", "12", "24"])
    for novelty in everything:
        if novelty.longest and (novelty is control or len(judged) <= _AT_MOST):
            console.sentence(f"{novelty.name}: {_place(novelty.longest)}: {_quoted(novelty.longest)}")


def _length(novelty: Novelty) -> int:
    return len(novelty.longest.text) if novelty.longest else 0


def _place(copy: Copy) -> str:
    # Where line ends are read as spaces, all is one line.
    line = f"line {copy.line:,}, " if copy.line > 1 else ""
    place = f"the story {copy.story}, {line}character {copy.place:,}"
    return f"{len(copy.text):,} characters at {copy.begin:,}, from {place}"


def _quoted(copy: Copy) -> str:
    text = " ".join(copy.text.split())
    return f"“{text[:_SHOWN]}{' …' if len(text) > _SHOWN else ''}”"


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
