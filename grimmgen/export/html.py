"""A model as one HTML page that generates text in any browser, without a network connection.

The page's sources are in `grimmgen/data/page`; here they become one file. Whatever comes from the user (the names of
run and corpus, the vocabulary) is inside the checkpoint, which is base64; the page shows it as text, never as markup.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from importlib.resources import files as resources

from grimmgen.errors import GrimmgenError
from grimmgen.export.instructions import Program
from grimmgen.runs.checkpoint import CHECKPOINT_CLOSES, CHECKPOINT_OPENS, LARGEST_PAGE, PAGE, Checkpoint

# What runs in the worker, in the order in which it is put together.
_WORKER = ("random.js", "kernel.js", "network.js", "vocabulary.js", "generation.js", "worker.js")
_LINE = 120


def to_html(checkpoint: Checkpoint) -> bytes:
    """Make the page of a model.

    The page generates what the model generates here, up to rounding. Weights of 16 bits (`Checkpoint.rounded`) make it
    half as large; `Checkpoint.read` reads the model back.

    Args:
        checkpoint: the model.

    Raises:
        GrimmgenError: the model is too large for a page.
    """
    style, page = _source("page.css"), _source("page.js")
    program = Program.of(checkpoint.configuration, len(checkpoint.vocabulary)).to_json()
    html = _source("page.html")
    for name, content in {
        "policy": _policy(style, page),
        "style": style,
        "page": page,
        "worker": "\n".join(map(_source, _WORKER)),
        # A script ends at the next `</script`, also within a text of JSON.
        "program": json.dumps(program).replace("<", "\\u003c"),
    }.items():
        html = html.replace(f"@{name}@", content)
    before, after = html.encode().split(b"@checkpoint@")
    encoded = base64.b64encode(dataclasses.replace(checkpoint, mixture=None).to_bytes(bits=16))
    lines = b"\n".join(encoded[at : at + _LINE] for at in range(0, len(encoded), _LINE))
    whole = b"".join([before, CHECKPOINT_OPENS, b"\n", lines, b"\n", CHECKPOINT_CLOSES, after])
    assert whole.startswith(PAGE)
    if len(whole) > LARGEST_PAGE:
        raise GrimmgenError(
            f"the page would have {len(whole) >> 20} MB, and browsers read {LARGEST_PAGE >> 20} MB at most",
            "export a smaller model",
        )
    return whole


def _policy(style: str, page: str) -> str:
    """The content security policy: nothing is loaded or sent, and only the page's own style and script are run."""
    allowed = {
        "default-src": "'none'",
        "script-src": f"{_hashed(page)} 'wasm-unsafe-eval'",
        "style-src": _hashed(style),
        "worker-src": "blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{directive} {sources}" for directive, sources in allowed.items())


def _hashed(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _source(name: str) -> str:
    return (resources("grimmgen") / "data" / "page" / name).read_text("utf-8")
