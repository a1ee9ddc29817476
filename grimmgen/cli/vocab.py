"""`grimmgen vocab`: the tokens of a corpus, and checks of its text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grimmgen.cli import options
from grimmgen.configuration import READING, Configuration

if TYPE_CHECKING:
    from grimmgen.text.corpus import Corpus
    from grimmgen.text.counts import Statistics
    from grimmgen.text.split import Split
    from grimmgen.text.vocabulary import Vocabulary

_TITLES = {
    "ngram": "{} that do not overlap",
    "word": "words, punctuation and white space; rare words are spelt",
    "bpe": "byte pairs, joined within words",
}


@options.accept(Configuration, "tokens", "min_count", "lower", "newlines", "language", "phases", *READING)
def vocab(
    context: typer.Context,
    chosen: Mapping[str, Any],
    sources: options.CorpusFiles = None,
    corpus: options.CorpusSources = options.DEFAULT_CORPUS,
    split: Annotated[Path | None, options.SplitFile] = None,
    top: Annotated[int, options.option(help="Number of most and least frequent tokens to show.")] = 20,
    check: Annotated[
        bool, options.option("--check", help="Check the corpus for problems instead, and suggest remedies.")
    ] = False,
    repair: Annotated[
        Path | None,
        options.option(
            "--repair",
            metavar="DIR",
            help="Write copies of the texts to a new directory, without what --check would repair.",
        ),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Count the tokens of a corpus: how many, how frequent, how long, and how many are <unk>.

    Example: grimmgen vocab --corpus sampler --top 10

    Example: grimmgen vocab --corpus sampler --tokens word

    Example: grimmgen vocab --corpus ~/letters --check
    """
    from grimmgen.cli import console
    from grimmgen.errors import UsageError
    from grimmgen.text.corpus import open_corpus
    from grimmgen.text.counts import count_tokens
    from grimmgen.text.split import split_by_file, split_by_hash

    if top < 0:
        raise UsageError(f"--top {top} is out of range", "give 0 or more")
    corpus, _ = options.merge_files(sources, corpus, options.typed(context))
    configuration = Configuration(**chosen)
    notify = None if quiet or json else console.note
    if repair is not None:
        _repair(corpus, configuration, repair, quiet)
        return
    text = open_corpus(corpus, configuration, notify=notify)
    parts = split_by_hash(text) if split is None else split_by_file(text, split)
    if check:
        _check(text, parts, configuration, json)
        return
    counted = count_tokens(parts, configuration)
    if json:
        console.document(_to_json(text, configuration, counted, top))
        return
    _print(text, configuration, counted, top)
    options.show_report(text.report, notify)
    if not quiet:
        # The standard input can be read once; its text is in a file of the cache.
        places = [text.source] if isinstance(text.source, str) else text.source
        again = [place if typed == "-" else typed for typed, place in zip(corpus, places, strict=True)]
        sources = [f" --corpus {shlex.quote(one)}" for one in again if corpus != options.DEFAULT_CORPUS]
        departures = options.as_typed(configuration)
        console.hint(f"grimmgen train{''.join(sources)} {departures}".rstrip(), "next")


def _to_json(corpus: Corpus, configuration: Configuration, counted: Statistics, top: int) -> dict[str, Any]:
    ranked = _ranked(counted)
    parts = {
        part: {
            "stories": one.documents,
            "characters": one.characters,
            "tokens": one.tokens,
            "distinct": one.distinct,
            "unknown": one.unknown,
            "characters_per_token": one.characters_per_token,
            **({} if one.spelt is None else {"spelt": one.spelt}),
        }
        for part, one in counted.parts.items()
    }
    return {
        "corpus": corpus.source,
        "read": corpus.report.to_json(),
        "tokens": configuration.tokens,
        "min_count": configuration.min_count,
        "parts": parts,
        "total": {
            "stories": counted.documents,
            "characters": sum(one.characters for one in counted.parts.values()),
            "tokens": sum(one.tokens for one in counted.parts.values()),
            "distinct": counted.distinct,
        },
        "vocabulary_size": len(counted.vocabulary),
        "kept": len(ranked),
        "alphabet": counted.vocabulary.alphabet,
        "most_frequent": ranked[:top],
        "least_frequent": ranked[len(ranked) - min(top, len(ranked)) :],
        "beginning": counted.beginning,
    }


def _print(corpus: Corpus, configuration: Configuration, counted: Statistics, top: int) -> None:
    from grimmgen.cli import console

    units = configuration.tokenization.units
    spelt = counted.parts["train"].spelt is not None
    rows: list[Sequence[object]] = [
        [
            part,
            one.documents,
            f"{one.characters:,}",
            f"{one.tokens:,}",
            f"{one.characters_per_token:.2f}",
            f"{one.distinct:,}",
            *([f"{one.spelt:.3%}"] if one.spelt is not None else []),
            f"{one.unknown:.3%}",
        ]
        for part, one in counted.parts.items()
    ]
    characters = sum(one.characters for one in counted.parts.values())
    tokens = sum(one.tokens for one in counted.parts.values())
    mean = f"{characters / max(1, tokens):.2f}"
    rows.append(["all", counted.documents, f"{characters:,}", f"{tokens:,}", mean, f"{counted.distinct:,}"])
    rows[-1] = [*rows[-1], *[""] * (len(rows[0]) - len(rows[-1]))]
    heads = ["part", "stories", "characters", units, "chars each", "distinct", *["spelt"] * spelt, "<unk>"]
    console.table(
        heads,
        rows,
        title=f"{corpus.name}: {_TITLES[configuration.tokenization.kind].format(units)}",
        right=heads[1:],
        dispensable=["characters", "stories", "chars each"],
    )
    ranked = _ranked(counted)
    console.sentence(f"vocabulary: {len(counted.vocabulary)} = {_composition(counted.vocabulary, configuration)}")
    if top:
        console.out()
        console.sentence(f"most frequent   {_listed(ranked[:top])}")
        console.sentence(f"least frequent  {_listed(ranked[max(0, len(ranked) - top) :])}")
    console.sentence(f"first {units}  {counted.beginning!r}")


def _check(corpus: Corpus, split: Split, configuration: Configuration, json: bool) -> None:
    """Print the findings of the corpus checks, one line each; they do not change the exit code."""
    from grimmgen.cli import console
    from grimmgen.evaluation.corpus_checks import check_corpus

    findings = check_corpus(split, configuration, corpus.report.sources)
    documents = len(corpus.documents)
    if json:
        found = [finding.to_json() for finding in findings]
        read = corpus.report.to_json()
        console.document({"corpus": corpus.source, "read": read, "stories": documents, "findings": found})
        return
    for finding in findings:
        console.sentence(f"{finding.kind:11} {' '.join(finding.what.split())}: {finding.remedy}")
    warnings = f"{len(findings)} warning{'' if len(findings) == 1 else 's'}"
    console.out(f"{warnings} in {documents} document{'' if documents == 1 else 's'} of {corpus.name}")


def _repair(corpus: Sequence[str], configuration: Configuration, directory: Path, quiet: bool) -> None:
    """Write repaired copies of the texts."""
    from grimmgen.cli import console
    from grimmgen.errors import UsageError
    from grimmgen.reading.repair import write_repaired
    from grimmgen.reading.sources import find_sources
    from grimmgen.text.corpus import GRIMM, SAMPLER

    if {GRIMM, SAMPLER}.intersection(corpus):
        raise UsageError("--repair is for texts of your own", "give their --corpus")
    sources, _ = find_sources(corpus)
    write_repaired(sources, configuration, directory)
    if not quiet:
        console.hint(f"grimmgen train --corpus {shlex.quote(str(directory))}", "next")


def _composition(vocabulary: Vocabulary, configuration: Configuration) -> str:
    """What a vocabulary consists of."""
    kind, frequent = configuration.tokenization.kind, f"with {configuration.min_count} or more occurrences"
    characters = sum(len(text) == 1 for text in vocabulary.texts)
    longer = len(vocabulary.texts) - characters
    if kind == "ngram":
        parts = (
            f"{len(vocabulary.texts)} {configuration.tokenization.units} {frequent} in the training stories, <unk>"
            " for the others"
        )
    elif kind == "word":
        parts = (
            f"{longer} words and the like {frequent} in the training stories, {characters} characters that spell the"
            " others, <unk> for other characters"
        )
    else:
        parts = f"{characters} characters, {longer} tokens joined from them, <unk> for other characters"
    return f"{parts}, <end> for the end of a story"


def _ranked(counted: Statistics) -> list[tuple[str, int]]:
    """The tokens and their counts, the most frequent first."""
    pairs = zip(counted.vocabulary.texts, counted.vocabulary.counts, strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def _listed(ranked: list[tuple[str, int]]) -> str:
    return "  ".join(f"{ngram!r} {count:,}" for ngram, count in ranked)
