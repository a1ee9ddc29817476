"""`grimmgen export`: a model in a form that needs no grimmgen."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

from grimmgen.cli import options
from grimmgen.errors import UsageError


def export(
    run: options.RunOrFile = None,
    html: Annotated[
        Path | None,
        options.option(
            metavar="FILE",
            help="Write a web page that generates text in any browser, without a network connection.",
        ),
    ] = None,
    bits: Annotated[
        Literal["16", "32"],
        options.option(help="Bits of each weight in the page: 16 halves it, 32 are exactly the run's."),
    ] = "16",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Export a model, to use it where grimmgen is not installed.

    The page is a checkpoint, too: generate and eval read it with --run FILE. The same options and the same random
    seed give the same text in both.

    Example: grimmgen export --html teller.html
    """
    from grimmgen.cli import console
    from grimmgen.io import files
    from grimmgen.runs import registry

    if html is None:
        raise UsageError("there is nothing to export", "give --html FILE")
    path = files.output_path(html)
    model = registry.load_model(run)

    from grimmgen.export.html import to_html

    page = to_html(model.checkpoint.rounded() if bits == "16" else model.checkpoint)
    files.write_atomically(path, page)
    if json:
        console.document({"run": model.name, "html": str(html), "bytes": len(page), "bits": int(bits)})
    elif not quiet:
        console.note(f"{model.name} written to {html}: {len(page) / 1e6:.1f} MB; open it in a browser")
        if html.suffix == ".html":
            name = str(html) if "/" in str(html) else f"./{html}"
            console.hint(f"grimmgen generate --run {shlex.quote(name)}", "the same stories here")
