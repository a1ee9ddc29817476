"""What the file of an exported model says about its text and its origin, for programs without grimmgen."""

from __future__ import annotations

import json
from importlib.metadata import version

from grimmgen.runs.checkpoint import Checkpoint


def metadata_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Describe a model in the strings that the formats of others store.

    Returns:
        `model`, a JSON object. Its `vocabulary` is the text of each token in the order of ids; the first two are
            `<unk>` and `<end>`, which begins and ends a story. Its `text` says how a text is cut into tokens: to
            lower case first if `lower`, by the rules of `language` if it is not null, with line ends as spaces if
            `newlines` is `space`, and then as the option `--tokens` says: into pieces of `ngram` characters, unless
            that is null. Its `beginnings` are the ids that stories without a prompt begin with, null for any. Its
            `origin` has the cell, the run, the SHA-256 of the checkpoint and the version of grimmgen.
    """
    configuration, vocabulary = checkpoint.configuration, checkpoint.vocabulary
    kind, size = configuration.tokenization
    n = size if kind == "ngram" else None
    # One entry, because safetensors writes several in any order.
    model = {
        "vocabulary": [vocabulary.token(token) for token in range(len(vocabulary))],
        "text": {"tokens": vocabulary.tokens, "ngram": n, **vocabulary.normalisation._asdict()},
        "beginnings": checkpoint.provenance.get("beginnings"),
        "origin": {
            "cell": configuration.cell,
            "run": checkpoint.provenance.get("run"),
            "checkpoint_sha256": checkpoint.sha256,
            "grimmgen": version("grimmgen"),
        },
    }
    return {"model": json.dumps(model)}
