"""`grimmgen vocab`: what a corpus is made of, in n-grams."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from grimmgen.cli import options
from grimmgen.configuration import Configuration, Newlines

if TYPE_CHECKING:
    from grimmgen.text.corpus import Corpus
    from grimmgen.text.split import Split


def vocab(
    corpus: options.CorpusSource = "grimm",
    ngram: Annotated[int, options.option(help="Characters of a token.")] = Configuration.ngram,
    min_count: Annotated[
        int, options.option(help="Occurrences in the training stories that a token needs; others are <unk>.")
    ] = Configuration.min_count,
    keep_case: Annotated[bool, options.option("--keep-case", help="Do not fold to lower case.")] = False,
    newlines: Annotated[
        Newlines, options.option(metavar="HOW", help="keep line ends, or read them as a space.")
    ] = Configuration.newlines,
    phases: Annotated[
        bool, options.option(help="Count the training stories cut in all ways, as `train --phases` does.")
    ] = Configuration.phases,
    split: Annotated[
        Path | None,
        options.option(help="A JSON file that names the stories of each part.", show_default="80/10/10 by name"),
    ] = None,
    top: Annotated[int, options.option(help="How many of the most and least frequent to show.")] = 20,
    check: Annotated[
        bool,
        options.option("--check", help="Instead, look for what may do harm in the corpus, and tell what to do."),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show the n-grams of a corpus: how many, how often, and what <unk> hides.

    Example: grimmgen vocab --corpus sampler --top 10

    Example: grimmgen vocab --corpus ~/letters --check
    """
    import numpy as np

    from grimmgen.cli import console
    from grimmgen.errors import UsageError
    from grimmgen.text import encoding
    from grimmgen.text.corpus import open_corpus
    from grimmgen.text.split import PARTS, split_by_file, split_by_hash
    from grimmgen.text.vocabulary import UNKNOWN, Vocabulary

    if top < 0:
        raise UsageError(f"--top {top} is out of range", "give 0 or more")
    opened = open_corpus(corpus)
    divided = split_by_hash(opened) if split is None else split_by_file(opened, split)
    if check:
        read = Configuration(
            ngram=ngram, min_count=min_count, lower=not keep_case, newlines=newlines, phases=phases
        )
        _check(opened, divided, read, json)
        return
    parts = divided.parts
    every = [story for part in PARTS for story in parts[part]]
    vocabulary = Vocabulary.build(parts["train"], ngram, min_count, not keep_case, newlines, phases)
    everything = Vocabulary.build(every, ngram, 1, not keep_case, newlines)

    figures: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        characters, total_ids, hidden = 0, 0, 0
        seen = np.zeros(len(everything), np.bool_)
        pieces = (codes for story in parts[part] for codes in encoding.ngram_codes(story.pieces(), vocabulary))
        for codes in pieces:
            ids = vocabulary.ids(codes)
            characters += len(codes)
            total_ids += len(ids)
            hidden += int(np.count_nonzero(ids == UNKNOWN))
            seen[everything.ids(codes)] = True
        figures[part] = {
            "stories": len(parts[part]),
            "characters": characters,
            "tokens": total_ids,
            "distinct": int(np.count_nonzero(seen)),
            "unknown": hidden / max(1, total_ids),
        }
    total = {
        # Each once: a story may be cut into the three parts.
        "stories": len({story.name for story in every}),
        "characters": sum(f["characters"] for f in figures.values()),
        "tokens": sum(f["tokens"] for f in figures.values()),
        "distinct": len(everything.ngrams),
    }
    first = vocabulary.normalise(next(iter(parts["train"][0].pieces()), ""))
    beginning = [first[i : i + ngram] for i in range(0, 16 * ngram, ngram) if first[i : i + ngram]]
    ranked = list(zip(vocabulary.ngrams, vocabulary.counts, strict=True))
    if json:
        console.document(
            {
                "corpus": opened.source,
                "ngram": ngram,
                "min_count": min_count,
                "parts": figures,
                "total": total,
                "vocabulary_size": len(vocabulary),
                "kept": len(ranked),
                "alphabet": vocabulary.alphabet,
                "most_frequent": ranked[:top],
                "least_frequent": ranked[len(ranked) - min(top, len(ranked)) :],
                "beginning": beginning,
            }
        )
        return
    rows = [
        [
            part,
            f["stories"],
            f"{f['characters']:,}",
            f"{f['tokens']:,}",
            f"{f['distinct']:,}",
            f"{f['unknown']:.3%}",
        ]
        for part, f in figures.items()
    ]
    rows.append(
        ["all", total["stories"], f"{total['characters']:,}", f"{total['tokens']:,}", f"{total['distinct']:,}", ""]
    )
    names = {1: "unigrams", 2: "bigrams", 3: "trigrams"}
    grams = names.get(ngram, f"{ngram}-grams")
    heads = ["part", "stories", "characters", grams, "distinct", "<unk>"]
    console.table(
        heads,
        rows,
        title=f"{opened.name}: {grams} that do not overlap",
        right=heads[1:],
        dispensable=["characters", "stories"],
    )
    console.sentence(
        f"vocabulary: {len(vocabulary)} = {len(ranked)} {grams} seen {min_count} times or more in the training"
        " stories, <unk> for the rest, <end> for a story's end"
    )
    if top:
        console.out()
        console.sentence(f"most frequent   {_list(ranked[:top])}")
        console.sentence(f"least frequent  {_list(ranked[max(0, len(ranked) - top) :])}")
    console.sentence(f"a story begins  {beginning!r}")
    if not quiet:
        given = "" if corpus == "grimm" else f" --corpus {shlex.quote(corpus)}"
        console.hint(f"grimmgen train{given}", "next")


def _check(corpus: Corpus, split: Split, configuration: Configuration, json: bool) -> None:
    """Print the findings of the corpus checks, one line each; they do not change the exit code."""
    from grimmgen.cli import console
    from grimmgen.evaluation.corpus_checks import check_corpus

    findings = check_corpus(split, configuration)
    documents = len(corpus.documents)
    if json:
        found = [finding.to_json() for finding in findings]
        console.document({"corpus": corpus.source, "stories": documents, "findings": found})
        return
    for finding in findings:
        console.sentence(f"{finding.kind:11} {' '.join(finding.what.split())}: {finding.remedy}")
    warnings = f"{len(findings)} warning{'' if len(findings) == 1 else 's'}"
    console.out(f"{warnings} in {documents} document{'' if documents == 1 else 's'} of {corpus.name}")


def _list(ranked: list[tuple[str, int]]) -> str:
    return "  ".join(f"{gram!r} {count:,}" for gram, count in ranked)
