"""`grimmgen generate --interactive`: a story written together, line by line.

Lines are all that it needs of a terminal, so that it works over ssh, in any width and on Windows.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from grimmgen.cli import console
from grimmgen.errors import GrimmgenError, UsageError
from grimmgen.io import files

if TYPE_CHECKING:
    from grimmgen.sampling.options import SamplingOptions
    from grimmgen.sampling.generator import TextGenerator

_PROPOSED = 8
# So much of the story is shown again and again; a sentence has no more.
_SHOWN = 400
_LONGEST_SENTENCE = 1000
# What is typed after these begins without a space, and these stand without one after a word.
_OPENING = '(["\u201c\u2018\u00ab\u201e'
_CLOSING = ",.;:!?)]\u2019\u201d\u00bb\u2026'"
_HELP = (
    "a number takes a word, text goes on with it, Enter alone lets the model tell a sentence;"
    " /undo, /save FILE, /show, /help, /quit"
)


def check_terminal() -> None:
    """Refuse to begin where nobody can answer.

    Raises:
        UsageError: standard input or output is not a terminal.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("--interactive needs a terminal", "leave it out, or run it at one")


def write_together(teller: TextGenerator, prompt: str, decoding: SamplingOptions) -> None:
    """Propose words, take what is typed, until the user leaves.

    Args:
        teller: the model.
        prompt: what the story begins with.
        decoding: how sentences are told; its random seed is that of the first.
    """
    # Where there is it, it lets input() be edited.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401

    story = _Story(teller, prompt, decoding)
    _show(_HELP)
    try:
        while True:
            words = teller.next_words(
                story.text, _PROPOSED, random_seed=decoding.random_seed, state=decoding.state
            )
            _show("", story.tail(), _proposed(story.text, words))
            typed = input("> ")
            if typed.strip() == "/quit":
                break
            if note := _answer(story, typed, words):
                _show(note)
    except EOFError:
        console.write("\n")
    finally:
        # Nobody loses a story that was not saved.
        if not story.saved and story.text:
            _show("", story.text)


class _Story:
    """What has been written, and what was there before each step.

    Attributes:
        text: normalised as the model's corpus.
        saved: whether a file has it as it is.
    """

    def __init__(self, teller: TextGenerator, prompt: str, decoding: SamplingOptions) -> None:
        self._teller, self._decoding = teller, decoding
        self.text = teller.vocabulary.normalise(prompt)
        self.saved = True
        self._before: list[str] = []

    def go_on(self, more: str) -> None:
        self._before.append(self.text)
        self.text += self._teller.vocabulary.normalise(more)
        self.saved = False

    def type(self, typed: str) -> None:
        """Go on with what was typed, after a space if there has to be one."""
        apart = self.text and not self.text[-1].isspace() and self.text[-1] not in _OPENING
        self.go_on(f" {typed}" if apart and typed[0] not in _CLOSING and not typed[0].isspace() else typed)

    def unknown(self) -> tuple[list[str], list[str]]:
        """What the model does not know of what was written last."""
        before, after = (self._teller.unknown_in(text) for text in (self._before[-1], self.text))
        characters, ngrams = (
            [part for part in new if part not in old] for old, new in zip(before, after, strict=True)
        )
        return characters, ngrams

    def undo(self) -> bool:
        if not self._before:
            return False
        self.text = self._before.pop()
        self.saved = False
        return True

    def tell(self) -> int:
        """Let the model tell a sentence; returns the copy that it could not avoid, in characters."""
        seed = (self._decoding.random_seed + len(self._before)) % 2**62
        length = min(self._decoding.length or _LONGEST_SENTENCE, _LONGEST_SENTENCE)
        options = replace(self._decoding, until="sentence", random_seed=seed, length=length)
        [told] = self._teller.tell_several(self.text, options, 1)
        self.go_on("".join(told.pieces))
        return told.copied

    def save(self, path: Path) -> None:
        files.write_atomically(path, (self.text + "\n").encode("utf-8", "backslashreplace"))
        self.saved = True

    def tail(self) -> str:
        if len(self.text) <= _SHOWN:
            return self.text or "(nothing yet)"
        return "… " + self.text[-_SHOWN:].partition(" ")[2]


def _answer(story: _Story, typed: str, words: list[tuple[str, float]]) -> str | None:
    """Do what was typed; returns what to say of it."""
    command, _, argument = typed.strip().partition(" ")
    if not typed.strip():
        return console.copied(story.tell())
    if command.isascii() and command.isdigit() and not argument:
        # What Python makes no number of is none of the words either.
        if len(command) > 4 or not 1 <= int(command) <= len(words):
            return f"there is no word {command}: the words are 1 to {len(words)}"
        story.go_on(words[int(command) - 1][0])
    elif command == "/undo":
        return None if story.undo() else "there is nothing to undo"
    elif command == "/show":
        return story.text
    elif command == "/save":
        return _save(story, argument.strip())
    elif command == "/help":
        return _HELP
    elif command.startswith("/"):
        return f"there is no {command}: {_HELP}"
    else:
        story.type(typed)
        return console.unknown(*story.unknown())
    return None


def _save(story: _Story, name: str) -> str:
    if not name:
        return "give a name: /save story.txt"
    path = Path(name)
    try:
        target = files.output_path(path)
        if target.exists() and not console.confirm(f"{path} is there: write over it?"):
            return "not saved"
        story.save(target)
    except GrimmgenError as error:
        return str(error)
    return f"saved to {path}"


def _proposed(text: str, words: list[tuple[str, float]]) -> str:
    """The words with their numbers and probabilities; one that is the rest of a word has dots before it."""
    within = text[-1:].isalnum()
    # Spaces that do not part keep a word beside its number where lines are broken.
    return "  ".join(
        f"{number}\u00a0{'…' * (within and word[0].isalnum())}{word.strip()}\u00a0{p:.0%}"
        for number, (word, p) in enumerate(words, 1)
    )


def _show(*paragraphs: str) -> None:
    lines = console.Lines()
    for paragraph in paragraphs:
        lines.write(paragraph + "\n")
