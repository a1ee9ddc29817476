"""A model card in a few sentences: how good a run is, whether it has learnt its text by heart, what to try next.

Everything is a pure function of figures that others measure: the log of the run, the bits per character of counts
(`grimmgen.evaluation.baseline`), the longest copies of generated and of held-out text
(`grimmgen.evaluation.novelty`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from grimmgen.errors import IntegrityError

if TYPE_CHECKING:
    from grimmgen.runs.registry import TrainedModel

Verdict = Literal["improving", "converged", "overfitted", "unknown"]

# In bits per character: less is no difference to speak of.
_DIFFERENCE = 0.01
# A text of fewer characters is small: another model's weights are a better start than random ones.
SMALL_TEXT = 300_000


@dataclass(frozen=True)
class Course:
    """How the validation set was predicted in the course of a training.

    Attributes:
        bits_per_character: the best.
        best_epoch: when it was reached.
        last_epoch: of the last evaluation.
        second_half: bits per character that the second half of the training brought; None after one evaluation.
        gap: by how many bits a token of the validation set costs more than one of the training set, at the end.
        ended: why training ended, as in `Finished.reason`; empty if it has not.
    """

    bits_per_character: float
    best_epoch: int
    last_epoch: int
    second_half: float | None
    gap: float
    ended: str = ""

    @classmethod
    def of_log(cls, log: Sequence[Mapping[str, Any]]) -> Course | None:
        """Read the evaluations of a run's log; None if there are none.

        Raises:
            IntegrityError: the log is damaged.
        """
        scores = [event for event in log if event.get("event") == "evaluated"]
        if not scores:
            return None
        try:
            bits = [float(event["bits_per_character"]) for event in scores]
            seconds = [float(event["seconds"]) for event in scores]
            best = bits.index(min(bits))
            half = [b for b, s in zip(bits, seconds, strict=True) if s <= seconds[-1] / 2] or bits[:1]
            brought = min(half) - bits[best] if len(bits) > 1 else None
            validation, training = (float(scores[-1][name]) for name in ("perplexity", "training_perplexity"))
            gap = math.log2(validation / training) if min(validation, training) > 0 else 0.0
            finished = (event.get("reason", "") for event in reversed(log) if event.get("event") == "finished")
            epochs = int(scores[best]["epoch"]), int(scores[-1]["epoch"])
            return cls(bits[best], *epochs, brought, gap, str(next(finished, "")))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise IntegrityError(
                "the log of the run is damaged", "remove the run with `grimmgen runs rm`"
            ) from None

    @property
    def verdict(self) -> Verdict:
        """Whether more time would bring more."""
        if self.last_epoch - self.best_epoch > max(1, self.last_epoch // 10):
            return "overfitted"
        if self.second_half is None:
            return "unknown"
        return "improving" if self.second_half > _DIFFERENCE else "converged"

    def __str__(self) -> str:
        """What more time would bring, as a sentence."""
        if self.verdict == "overfitted":
            return (
                f"validation has not improved since epoch {self.best_epoch} of {self.last_epoch}: more time brings"
                " nothing"
            )
        if self.verdict == "unknown":
            return "one evaluation does not say what more time would bring"
        if self.verdict == "improving":
            return (
                f"validation was still improving: the second half of the training brought {self.second_half:.2f} bits"
                " per character, more time would bring more"
            )
        return "validation has all but stopped improving: more time brings little"


@dataclass(frozen=True)
class Card:
    """What is known of a run.

    Attributes:
        course: of its training.
        counts: bits per character of counts on the same validation set; None if unknown.
        characters: of the training set; None if unknown.
        copied: characters of the longest copy of the training set in a generated text; None if unknown.
        shared: characters of the longest copy in the held-out documents.
        mixed: whether the run has counts beside its network.
    """

    course: Course
    counts: float | None = None
    characters: int | None = None
    copied: int | None = None
    shared: int | None = None
    mixed: bool = False

    def to_json(self) -> dict[str, Any]:
        """All of it, in words as well."""
        return {"card": {**asdict(self), "verdict": self.course.verdict, "next": self.next_steps()}}

    def sentences(self) -> list[str]:
        """What the run is good for."""
        bits = self.course.bits_per_character
        quality = f"{bits:.2f} bits per character on the validation set"
        if self.counts is not None:
            quality += f", and {self.counts:.2f} by counting alone (Kneser-Ney, 8 characters): the network is "
            difference = self.counts - bits
            if abs(difference) <= _DIFFERENCE:
                quality += "no better"
            else:
                quality += f"{abs(difference):.2f} bits {'better' if difference > 0 else 'worse'}"
        found = [quality, str(self.course)]
        if self.course.gap > 0:
            found.append(
                f"a token of the validation set costs {self.course.gap:.1f} bits more than one of the training set"
            )
        if self.copied is not None and self.shared is not None:
            found.append(
                f"a generated text copies at most {self.copied} characters of the training set in a row; the held-out"
                f" documents share {self.shared} with it"
            )
        return found

    def next_steps(self) -> list[str]:
        """What to try, the most promising first; each is a sentence with an option or a command."""
        steps, verdict = [], self.course.verdict
        if verdict in {"improving", "unknown"}:
            limit = {"epochs": "--epochs", "budget": "--budget"}.get(self.course.ended, "--budget or --epochs")
            steps.append(f"train longer: a new run with twice the {limit}")
        if self.counts is not None and self.counts < self.course.bits_per_character and not self.mixed:
            steps.append("keep counts beside the network, which are better here: --counts")
        small = self.characters is not None and self.characters < SMALL_TEXT
        if small and verdict in {"converged", "overfitted"}:
            steps.append(
                "give more text of the same kind, or start from a model that has read more (train --from)"
            )
        if verdict == "overfitted":
            steps.append("train with more --dropout, or for fewer --epochs, so that the rate anneals before")
        if self.copied is not None and self.shared is not None and self.copied > 2 * self.shared:
            steps.append(f"generate with --max-copy {self.shared}, so that no long passage is copied")
        if verdict == "converged" and not small:
            steps.append("train a larger network: --preset strong, or more --hidden units")
        return steps


def measure_card(model: TrainedModel, course: Course, generated: str) -> Card:
    """Count the run's training set, and look in it for copies.

    Args:
        model: of a run.
        course: of its training.
        generated: a text that it generated.

    Raises:
        GrimmgenError: a document cannot be read, or the cache of the index of copies cannot be written.
        IntegrityError: the corpus has changed.
    """
    from grimmgen.evaluation.baseline import KneserNey
    from grimmgen.evaluation.novelty import measure_together, training_index
    from grimmgen.text.corpus import size_of
    from grimmgen.text.normalisation import normalise

    options, parts = model.checkpoint.configuration.normalisation, model.split().parts
    train, valid = (
        [(document.name, normalise(document.read(), options)) for document in parts[part]]
        for part in ("train", "valid")
    )
    index, texts = training_index(model), [text for _, text in valid if text]
    copied = measure_together(index, "generated", [normalise(generated, options)]).longest
    shared = measure_together(index, "validation set", texts).longest
    return Card(
        course,
        KneserNey([text for _, text in train])
        .evaluate([pair for pair in valid if pair[1]])
        .total.bits_per_character,
        size_of(parts["train"]),
        len(copied.text) if copied else 0,
        len(shared.text) if shared else 0,
        model.checkpoint.mixture is not None,
    )
