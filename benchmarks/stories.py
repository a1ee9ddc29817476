"""How generated stories read, beside held-out ones: the table of ways of sampling, and a page for a blind comparison.

    python benchmarks/stories.py --run NAME                                   # every way of sampling of `WAYS`
    python benchmarks/stories.py --run NAME top_k=3 top_p=0.9,temperature=0.8 # those that are named
    python benchmarks/stories.py --run NAME --ab out.html top_p=0.9 top_k=3 --pairs 20
    python benchmarks/stories.py --run NAME --lengths 50                      # of whole stories (--until end)
    python benchmarks/stories.py --table benchmarks/stories.jsonl             # print the table of a record

A way of sampling is options of `grimmgen generate` as in Python, separated by commas; `default` is the run's own, and
`@FILE` are stories of another program, separated by lines of `---`. Every way generates the same number of stories
with the random seeds 0 and up. What is measured, of the first `--length` characters of each story:

    real words     share of words that occur in the corpus; for a held-out story, in the other stories
    again          share of four-word sequences that occurred before in the same story
    distinct       share of three-word sequences of all stories that are different, of equally many words
    Zipf           exponent of the frequency of words over their rank (of the ranks 5 to 500)
    longest, ≥ 40  longest copy from the training set, in characters; share of the text in copies of 40 or more
    others' bits   bits per character under a Kneser-Ney model of held-out stories, which no way has seen; for these
                   themselves, under a model of the other half of them
    quotes         share of quotation marks that open a quotation within another, or close none
    recurring      share of the characters (king, fox, …) of the first half that the second half has, too
    AUC            of a linear classifier of character 5-grams that separates generated from held-out passages of
                   500 characters, cross-validated by story: 0.5 cannot, 1.0 always does

`--out FILE` appends a line of JSON for each row. The page of `--ab` shows pairs of stories in random order, counts
votes in the browser, and names the ways after the last one.
"""

from __future__ import annotations

import argparse
import ast
import base64
import collections
import json
import math
import re
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grimmgen.evaluation.baseline import KneserNey
from grimmgen.evaluation.novelty import CopyIndex, measure_together, training_index
from grimmgen.runs import registry
from grimmgen.sampling.generator import TextGenerator
from grimmgen.text.normalisation import normalise

WAYS = (
    "top_k=3,lexicon=True",
    "min_p=0.1,lexicon=True",
    "min_p=0.05,lexicon=True",
    "top_p=0.8,lexicon=True",
    "top_k=3,lexicon=False,mix=0.0",
    "min_p=0.1,lexicon=False,mix=0.0",
    "min_p=0.1,lexicon=True,mix=0.0",
    "min_p=0.05,lexicon=True,mix=0.0",
    "top_p=0.9,lexicon=True,mix=0.0",
    "top_k=0,lexicon=True,mix=0.0",
)
HELD_OUT = "held-out stories"
# A story that ends before this many characters is left out.
_SHORTEST = 800
_PASSAGE = 500
# Features of the classifier.
_BUCKETS = 1 << 16
_FOLDS = 5
_WORD = re.compile(r"[^\W\d_]+")
# Who says or does something is a character of the story.
_ACTS = "said|answered|cried|replied|thought|asked|went|came|ran|took|saw|looked|began"
_ACTOR = re.compile(rf"\bthe (\w+) (?:{_ACTS})\b")


@dataclass(frozen=True)
class Row:
    """The measures of one way of sampling; see the top of the script."""

    way: str
    run: str
    stories: int
    characters: int
    real_words: float
    again: float
    distinct: float
    zipf: float
    longest_copy: int
    copied_40: float
    others_bits: float
    quotes: float
    recurring: float
    auc: float | None
    seconds: float | None
    text: str


COLUMNS: dict[str, Callable[[Row], str]] = {
    "way of sampling": lambda row: row.way if row.way == HELD_OUT else f"`{row.way}`",
    "real words": lambda row: f"{row.real_words:.2%}",
    "again": lambda row: f"{row.again:.2%}",
    "distinct": lambda row: f"{row.distinct:.1%}",
    "Zipf": lambda row: f"{row.zipf:.2f}",
    "longest": lambda row: str(row.longest_copy),
    "≥ 40": lambda row: f"{row.copied_40:.1%}",
    "others' bits": lambda row: f"{row.others_bits:.2f}",
    "quotes": lambda row: f"{row.quotes:.0%}",
    "recurring": lambda row: f"{row.recurring:.0%}",
    "AUC": lambda row: "" if row.auc is None else f"{row.auc:.2f}",
}


def table(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" + "|--:" * (len(COLUMNS) - 1) + "|"]
    return "\n".join(lines + [f"| {' | '.join(cell(row) for cell in COLUMNS.values())} |" for row in rows])


def read_record(path: Path) -> list[Row]:
    """The rows that `--out` wrote."""
    return [Row(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; an apostrophe separates two."""
    return _WORD.findall(text.lower())


class Judge:
    """Measures stories against a corpus.

    Args:
        training: the stories that the model was trained on, normalised.
        held_out: those that it was not.
        index: of the training stories.
        length: characters of a story that are measured.
    """

    def __init__(self, training: Sequence[str], held_out: Sequence[str], index: CopyIndex, length: int) -> None:
        self.held_out = [text[:length] for text in held_out if len(text) >= _SHORTEST]
        self._index, self._length = index, length
        self._stories_with = collections.Counter(w for text in [*training, *held_out] for w in {*words_of(text)})
        self._whole = dict(zip(self.held_out, (t for t in held_out if len(t) >= _SHORTEST), strict=True))
        actors = collections.Counter(actor for text in training for actor in _ACTOR.findall(text.lower()))
        self._actors = {actor for actor, count in actors.items() if count > 2}
        self._halves = KneserNey(held_out[0::2]), KneserNey(held_out[1::2])
        self._half_of = {text[:length]: number % 2 for number, text in enumerate(held_out)}

    def row(self, way: str, run: str, texts: Sequence[str], seconds: float | None) -> Row:
        """Measure the stories of one way of sampling."""
        example = texts[0]
        texts = [text[: self._length] for text in texts if len(text) >= _SHORTEST]
        novelty = measure_together(self._index, way, texts)
        return Row(
            way,
            run,
            len(texts),
            sum(map(len, texts)),
            self._real_words(texts),
            _mean(map(repeated, texts)),
            distinct(texts),
            zipf(texts),
            len(novelty.longest.text) if novelty.longest else 0,
            novelty.copied[40],
            self._others_bits(texts),
            misplaced_quotes(texts),
            self._recurring(texts),
            None if way == HELD_OUT else auc(self.held_out, texts),
            seconds,
            example[:600],
        )

    def _real_words(self, texts: Sequence[str]) -> float:
        # A held-out story vouches for none of its own words.
        own = [{*words_of(self._whole[text])} if text in self._whole else set[str]() for text in texts]
        found = [
            self._stories_with[word] > (word in known)
            for text, known in zip(texts, own, strict=True)
            for word in words_of(text)
        ]
        return _mean(found)

    def _others_bits(self, texts: Sequence[str]) -> float:
        nats, characters = 0.0, 0
        for text in texts:
            half = self._half_of.get(text)
            models = self._halves if half is None else [self._halves[1 - half]]
            # Without the cost of the end, which the cut text does not have.
            nats += float(np.mean([model.costs(text)[:-1].sum() for model in models]))
            characters += len(text)
        return nats / math.log(2) / characters

    def _recurring(self, texts: Sequence[str]) -> float:
        found = []
        for text in texts:
            words = words_of(text)
            first, second = words[: len(words) // 2], {*words[len(words) // 2 :]}
            found += [actor in second for actor in {*first} & self._actors]
        return _mean(found)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def repeated(text: str) -> float:
    """The share of four-word sequences that occurred before in the text."""
    words = words_of(text)
    sequences = list(zip(*(words[n:] for n in range(4)), strict=False))
    return 1 - len({*sequences}) / max(1, len(sequences))


def distinct(texts: Sequence[str], count: int = 10_000) -> float:
    """The share of the first `count` three-word sequences that are different."""
    sequences = list[tuple[str, ...]]()
    for text in texts:
        words = words_of(text)
        sequences += zip(*(words[n:] for n in range(3)), strict=False)
    return len({*sequences[:count]}) / len(sequences[:count])


def zipf(texts: Sequence[str]) -> float:
    """The negative slope of the logarithm of frequency over that of the rank."""
    counts = sorted(collections.Counter(w for text in texts for w in words_of(text)).values(), reverse=True)
    ranks = np.arange(5, min(500, len(counts)))
    slope, _ = np.polyfit(np.log(ranks), np.log(np.array(counts)[ranks - 1]), 1)
    return -float(slope)


def misplaced_quotes(texts: Sequence[str]) -> float:
    """The share of quotation marks that open a quotation within another one, or close none.

    A mark after a space opens, one before a space or punctuation closes; an apostrophe between letters is neither.
    """
    marks = wrong = 0
    for text in texts:
        opened = ""
        for match in re.finditer(r"(?:(?<=[\s(-])|^)['\"](?=\w)|(?<=[^\s(-])['\"](?=[\s,.;:?!)-]|$)", text):
            mark = match.group()
            opens = match.start() == 0 or text[match.start() - 1] in " \t\n(-"
            if not opens and not opened and text[match.start() - 1].isalpha():
                continue  # the plural of a possessive
            marks += 1
            wrong += opens == bool(opened) or (not opens and mark != opened)
            opened = mark if opens else ""
    return wrong / max(1, marks)


def auc(real: Sequence[str], generated: Sequence[str]) -> float:
    """The area under the ROC curve of a ridge classifier of hashed character 5-grams, cross-validated by story."""
    passages, labels, folds = [], [], []
    # Both classes have equally many stories.
    for label, texts in enumerate([real, generated[: len(real)]]):
        for number, text in enumerate(texts):
            cut = [text[at : at + _PASSAGE] for at in range(0, len(text) - _PASSAGE + 1, _PASSAGE)]
            passages += cut
            labels += [label] * len(cut)
            folds += [number % _FOLDS] * len(cut)
    X, y, fold = np.stack([_features(text) for text in passages]), np.array(labels), np.array(folds)
    similarity = (X @ X.T).astype(np.float64)
    scores = np.zeros(len(y))
    for held in range(_FOLDS):
        train, test = fold != held, fold == held
        # Ridge regression in its dual form: as many unknowns as there are passages.
        kernel = similarity[np.ix_(train, train)] + 0.1 * np.eye(int(train.sum()))
        mean = y[train].mean()
        scores[test] = similarity[np.ix_(test, train)] @ np.linalg.solve(kernel, y[train] - mean)
    above = scores[y == 1][:, None] - scores[y == 0]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def _features(text: str) -> NDArray[np.float32]:
    """The hashed 5-grams of a passage, of length 1."""
    content = text.encode()
    hashes = [zlib.crc32(content[at : at + 5]) % _BUCKETS for at in range(len(content) - 4)]
    counts = np.sqrt(np.bincount(hashes, minlength=_BUCKETS)).astype(np.float32)
    return counts / np.linalg.norm(counts)


def options_of(way: str) -> dict[str, Any]:
    """The options of a way of sampling.

    >>> options_of("top_p=0.9,until=end")
    {'top_p': 0.9, 'until': 'end'}
    """
    options: dict[str, Any] = {}
    for part in way.split(",") if way != "default" else []:
        name, _, value = part.partition("=")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def generate(generator: TextGenerator, way: str, stories: int, length: int) -> list[str]:
    """The stories of one way of sampling."""
    if way.startswith("@"):
        stored = Path(way[1:]).read_text("utf-8").split("\n---\n")
        return [generator.vocabulary.normalise(text.strip()) for text in stored]
    options = generator.options(**{"length": length, **options_of(way)})
    return [generation.text for generation in generator.generate_batch("", options, stories)]


def lengths_table(generator: TextGenerator, documents: Sequence[str], stories: int) -> str:
    """A Markdown table of the lengths of stories generated to their end, beside those of the training set."""
    generations = generator.generate_batch("", generator.options(until="end"), stories)
    texts = [generation.text for generation in generations]
    finished = sum(text.rstrip(" \n\"'")[-1:] in {".", "!", "?"} for text in texts)
    ended = sum(generation.ending == "end" for generation in generations)
    rows = ["| characters | shortest | 10 % | 25 % | median | 75 % | 90 % | longest |", "|---" + "|--:" * 7 + "|"]
    for name, group in ("training set", documents), (f"{stories} generated", texts):
        quantiles = np.quantile([len(text) for text in group], [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1])
        rows.append(f"| {name} | {' | '.join(f'{quantile:,.0f}' for quantile in quantiles)} |")
    return "\n".join([*rows, "", f"{ended} of {stories} ended, {finished} with a sentence."])


def write_page(path: Path, ways: Sequence[str], stories: Sequence[Sequence[str]], pairs: int, seed: int) -> None:
    """Write the page of a blind comparison of the first way with each of the others."""
    random = np.random.default_rng(seed)
    shown = []
    for other in range(1, len(ways)):
        for first, second in list(zip(stories[0], stories[other], strict=False))[:pairs]:
            pair = [{"text": first, "way": ways[0]}, {"text": second, "way": ways[other]}]
            shown.append(pair if random.random() < 0.5 else pair[::-1])
    random.shuffle(shown)
    # Encoded, so that the key is not read by accident.
    data = base64.b64encode(json.dumps(shown).encode()).decode()
    path.write_text(_PAGE.replace("@data@", data), "utf-8")


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Which of the two reads better?</title>
<style>
body { font: 1rem/1.5 Georgia, serif; max-width: 72rem; margin: 1rem auto; padding: 0 1rem }
#pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 2rem }
p { white-space: pre-wrap; overflow-wrap: anywhere } button { font: inherit; padding: 0.3rem 1rem; margin-right: 1rem }
td, th { padding: 0 1rem 0 0; text-align: left }
</style></head><body>
<h1>Which of the two reads better?</h1>
<p id="progress" role="status"></p>
<div><button id="left">The left one (1)</button><button id="right">The right one (2)</button>
<button id="neither">Neither (0)</button></div>
<div id="pair"><p></p><p></p></div><div id="key"></div>
<script>
const bytes = Uint8Array.from(atob("@data@"), (c) => c.charCodeAt(0));
const pairs = JSON.parse(new TextDecoder().decode(bytes)), votes = [];
const shown = document.querySelectorAll("#pair p"), progress = document.getElementById("progress");
function show() {
  if (votes.length === pairs.length) return finish();
  progress.textContent = `Pair ${votes.length + 1} of ${pairs.length}`;
  pairs[votes.length].forEach((story, n) => { shown[n].textContent = story.text; });
}
function vote(n) {
  if (votes.length === pairs.length) return;
  votes.push(n);
  scrollTo(0, 0);
  show();
}
function finish() {
  progress.textContent = "Thank you. These were the ways of sampling:";
  shown.forEach((p) => p.remove());
  const count = {};
  pairs.forEach((pair, n) => {
    const names = pair.map((story) => story.way), key = [...names].sort().join(" and ");
    count[key] ??= {};
    const chosen = votes[n] === null ? "neither" : names[votes[n]];
    count[key][chosen] = (count[key][chosen] ?? 0) + 1;
  });
  for (const [key, chosen] of Object.entries(count)) {
    const line = document.createElement("p");
    const results = Object.entries(chosen).map(([way, n]) => `${way}: ${n}`).join(", ");
    line.textContent = `Of ${key} — ${results}`;
    document.getElementById("key").append(line);
  }
  pairs.forEach((pair, n) => {
    const line = document.createElement("p");
    const preferred = ["the left one", "the right one"][votes[n]] ?? "neither";
    line.textContent = `${n + 1}. left ${pair[0].way}, right ${pair[1].way}: ${preferred}`;
    document.getElementById("key").append(line);
  });
}
["left", "right"].forEach((id, n) => document.getElementById(id).addEventListener("click", () => vote(n)));
document.getElementById("neither").addEventListener("click", () => vote(null));
addEventListener("keydown", (e) => { if ("120".includes(e.key)) vote({ 1: 0, 2: 1, 0: null }[e.key]); });
show();
</script></body></html>
"""


def main() -> None:
    """Generate, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", default=[*WAYS])
    parser.add_argument("--run", help="name of a run; the latest one by default")
    parser.add_argument("--stories", type=int, default=48, help="stories of each way")
    parser.add_argument("--length", type=int, default=2000, help="characters of each story that are measured")
    parser.add_argument("--out", type=Path, help="append a line of JSON for each row to this file")
    parser.add_argument("--ab", type=Path, metavar="HTML", help="compare the first way with the others blindly")
    parser.add_argument(
        "--pairs", type=int, default=20, help="pairs of stories on the page for each of the others"
    )
    parser.add_argument("--random-seed", type=int, default=0, help="of the order on the page")
    parser.add_argument(
        "--lengths", type=int, metavar="N", help="lengths of N stories that are generated to their end"
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of a record")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read_record(arguments.table)))
        return
    run = registry.find(arguments.run)
    generator = TextGenerator.load(run.name)
    if arguments.ab:
        stories = [generate(generator, w, arguments.pairs, arguments.length) for w in arguments.ways]
        write_page(arguments.ab, arguments.ways, stories, arguments.pairs, arguments.random_seed)
        return
    parts, normalisation = run.split().parts, run.configuration.normalisation
    training = [normalise(document.read(), normalisation) for document in parts["train"]]
    if arguments.lengths:
        print(lengths_table(generator, training, arguments.lengths))
        return
    held_out = [normalise(d.read(), normalisation) for part in ("valid", "test") for d in parts[part]]
    judge = Judge(training, held_out, training_index(generator.model), arguments.length)
    rows = []
    for way in (HELD_OUT, *arguments.ways):
        started = time.process_time()
        if way == HELD_OUT:
            row = judge.row(way, run.name, judge.held_out, None)
        else:
            texts = generate(generator, way, arguments.stories, arguments.length)
            row = judge.row(way, run.name, texts, time.process_time() - started)
        rows.append(row)
        print(way, row.text, sep="\n  ", end="\n\n", flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as record:
                record.write(json.dumps(asdict(row)) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
