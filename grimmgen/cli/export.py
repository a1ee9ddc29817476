"""`grimmgen export`: a model in forms that need no grimmgen."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from grimmgen.cli import options
from grimmgen.errors import UsageError

if TYPE_CHECKING:
    from grimmgen.runs.checkpoint import Checkpoint


def export(
    run: options.RunOrFile = None,
    html: Annotated[
        Path | None,
        options.option(
            metavar="FILE",
            help="Write a web page that generates text in any browser, without a network connection.",
        ),
    ] = None,
    onnx: Annotated[
        Path | None,
        options.option(metavar="FILE", help="Write an ONNX graph of one time step, with the state in and out."),
    ] = None,
    onnx_window: Annotated[
        Path | None,
        options.option(metavar="FILE", help="Write an ONNX graph that reads any number of tokens at once."),
    ] = None,
    torch: Annotated[
        Path | None,
        options.option(
            metavar="FILE",
            help="Write a state dict for torch.nn (safetensors; LSTM, coupled LSTM, GRU), and print code that loads"
            " it.",
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

    The page is a checkpoint, too (--run FILE): the same options and random seed give the same text in both.

    Example: grimmgen export --html teller.html
    """
    from grimmgen.cli import console
    from grimmgen.io import files
    from grimmgen.runs import registry

    forms = {"html": html, "onnx": onnx, "onnx_window": onnx_window, "torch": torch}
    named = {form: path for form, path in forms.items() if path is not None}
    if not named:
        raise UsageError("there is nothing to export", "give --html FILE, --onnx FILE or --torch FILE")
    if bits != "16" and html is None:
        raise UsageError("--bits has no effect without --html", "leave it out")
    paths = {form: files.output_path(path) for form, path in named.items()}
    if len(set(paths.values())) < len(paths):
        raise UsageError("two exports have the same file", "give each a name of its own")
    model = registry.load_model(run)
    options.report_default(run, model, quiet)
    exported = {form: _convert(form, model.checkpoint, path, bits) for form, path in named.items()}
    for form, (content, _) in exported.items():
        files.write_atomically(paths[form], content)
    if json:
        written = {form: {"path": named[form], "bytes": len(content)} for form, (content, _) in exported.items()}
        console.document({"run": model.name, **written})
        return
    if quiet:
        return
    for form, (content, code) in exported.items():
        console.note(f"{model.name} written to {named[form]}: {console.size(len(content))}")
        console.write(code)
    if html is not None:
        console.note("open it in a browser")
        if html.suffix == ".html":
            name = str(html) if "/" in str(html) else f"./{html}"
            console.hint(f"grimmgen generate --run {shlex.quote(name)}", "the same stories here")


def _convert(form: str, checkpoint: Checkpoint, path: Path, bits: str) -> tuple[bytes, str]:
    """A file of this form, and code that loads it."""
    # Imported only where they are used.
    match form:
        case "html":
            from grimmgen.export.html import to_html

            return to_html(checkpoint.rounded() if bits == "16" else checkpoint), ""
        case "torch":
            from grimmgen.export.torch import loading_code, to_torch

            return to_torch(checkpoint), loading_code(checkpoint, path)
        case _:
            from grimmgen.export import onnx

            graph: onnx.Form = "step" if form == "onnx" else "window"
            return onnx.to_onnx(checkpoint, graph), onnx.loading_code(checkpoint, path, graph)
