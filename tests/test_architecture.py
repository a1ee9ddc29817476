"""The structure of the package: imports go down only, and some things are never imported."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import grimmgen
from grimmgen.configuration import Configuration
from grimmgen.runs import registry
from grimmgen.text.corpus import open_corpus
from grimmgen.text.split import split_by_hash
from tests.builders import tiny_checkpoint
from tests.server import Server, answer

PACKAGE = Path(grimmgen.__file__).parent

# Packages, the lowest first: a module imports from its own package and from those before it. The longest matching
# name counts, so that `network.cells`, which needs nothing of the network, stands by itself.
PACKAGES = [
    "errors",
    "io",
    "network.cells",
    "configuration",
    "reading",
    "text",
    "counts",
    "network",
    "nn",
    "runs",
    "evaluation",
    "sampling",
    "export",
    "training",
    "ranks",
    "display",
    "api",
    "cli",
    "__main__",
]

# The network is written from scratch, and no file that is read runs code.
READY_MADE = {
    "LSTM",
    "GRU",
    "RNN",
    "RNNBase",
    "LSTMCell",
    "GRUCell",
    "RNNCell",
    "lstm",
    "gru",
    "lstm_cell",
    "gru_cell",
}
READY_MADE |= {"rnn_tanh", "rnn_relu"}
UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def sources() -> dict[str, str]:
    """The source of every module, by its name without `grimmgen.`; that of the package itself is the empty string."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


SOURCES = sources()


def level_of(module: str) -> int | None:
    """The place of a module's package; None if it has none."""
    while module not in PACKAGES and "." in module:
        module = module.rpartition(".")[0]
    return PACKAGES.index(module) if module in PACKAGES else None


@cache
def nodes(source: str) -> list[ast.AST]:
    """All nodes that are executed, in functions too; not those for type checkers."""
    found: list[ast.AST] = []
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        found.append(node)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
    return found


@cache
def imports(source: str) -> list[str]:
    """The full names of the modules that a source imports; a relative one begins with a dot."""
    found: list[str] = []
    for node in nodes(source):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append("." * node.level + (node.module or ""))
        elif isinstance(node, ast.ImportFrom):
            # `from grimmgen import files` imports the module, `from grimmgen.io.files import sweep` its parent.
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append(whole if whole.removeprefix("grimmgen.") in SOURCES else str(node.module))
    return found


def upward(module: str, source: str) -> list[str]:
    """What is wrong with a module's imports, one line each."""
    here = level_of(module)
    if here is None:
        return [f"{module} is in no package"]
    wrong = []
    for name in imports(source):
        target = name.removeprefix("grimmgen.")
        if name.startswith("."):
            wrong.append(f"{module} imports {name}, which is relative")
        elif name == "grimmgen":
            wrong.append(f"{module} imports the whole package")
        elif target != name and ((there := level_of(target)) is None or there > here):
            wrong.append(f"{module} imports {target}, which is above it")
    return wrong


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Circles of imports, each as the modules along it."""
    found: list[list[str]] = []
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for target in sorted(graph.get(module, set())):
                follow(target, [*path, module])
            done.add(module)

    for module in sorted(graph):
        follow(module, [])
    return found


def test_imports_go_down_only() -> None:
    assert [complaint for m, source in SOURCES.items() if m for complaint in upward(m, source)] == []


def test_no_modules_import_each_other() -> None:
    graph = {m: {name.removeprefix("grimmgen.") for name in imports(s)} & set(SOURCES) for m, s in SOURCES.items()}
    assert cycles(graph) == []


def test_a_circle_of_imports_is_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c", "b"]]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (
            "def f():\n    from grimmgen.training import session",
            ["text.batches imports training.session, which is above it"],
        ),
        ("import grimmgen.cli.console", ["text.batches imports cli.console, which is above it"]),
        ("from grimmgen.text.corpus import Document", []),
        ("from grimmgen.nowhere import novel", ["text.batches imports nowhere, which is above it"]),
        ("from . import errors", ["text.batches imports ., which is relative"]),
        ("from grimmgen import load", ["text.batches imports the whole package"]),
        (
            "if TYPE_CHECKING:\n    from grimmgen.training import session\nelse:\n    from grimmgen.io import files",
            [],
        ),
    ],
)
def test_an_upward_import_is_found(line: str, complaint: list[str]) -> None:
    assert upward("text.batches", line) == complaint


def test_every_package_of_the_order_exists() -> None:
    assert upward("nowhere", "") == ["nowhere is in no package"]
    assert all(any(m == p or m.startswith(f"{p}.") for m in SOURCES) for p in PACKAGES)


def test_a_library_has_one_importer() -> None:
    homes = {
        "rich": "cli.console",
        "urllib3": "io.http",
        "filelock": "io.files",
        "platformdirs": "io.paths",
        "matplotlib": "runs.curves",
        "lxml": "reading.markup",
        "charset_normalizer": "reading.charsets",
        "onnx": "export.onnx",
        "tensorboard": "runs.tensorboard",
        "IPython": "display",
    }
    importers: dict[str, set[str]] = {library: set() for library in homes}
    for module, source in SOURCES.items():
        for library in {name.partition(".")[0] for name in imports(source)} & set(homes):
            importers[library].add(module)
    assert importers == {library: {home} for library, home in homes.items()}


def test_only_registries_import_by_a_computed_name() -> None:
    importers = {m for m, source in SOURCES.items() if "import_module" in source or "__import__" in source}
    assert importers <= {"", "network.cells", "network.backends.cuda.backend"}


def forbidden(module: str, source: str) -> list[str]:
    """The forbidden names that a module uses."""
    found = [name for name in imports(source) if name.split(".")[0] in UNSAFE_MODULES]
    for node in nodes(source):
        match node:
            case ast.Attribute(value=ast.Name(id="torch"), attr="load") | ast.keyword(arg="allow_pickle"):
                found.append(ast.unparse(node))
            case ast.Attribute(attr=name) if name in READY_MADE:
                found.append(ast.unparse(node))
            case ast.ImportFrom(module=str(origin), names=names) if origin.startswith("torch"):
                found += [alias.name for alias in names if alias.name in READY_MADE]
            case ast.Call(func=ast.Name(id="print")) if not module.startswith("cli"):
                found.append(ast.unparse(node))
            case _:
                pass
    return found


def test_no_module_uses_a_forbidden_name() -> None:
    assert {m: found for m, source in SOURCES.items() if (found := forbidden(m, source))} == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("def f():\n    import pickle", "pickle"),
        ("from joblib import load", "joblib"),
        ("torch.load(path)", "torch.load"),
        ("np.load(path, allow_pickle=True)", "allow_pickle=True"),
        ("cell = torch.nn.LSTM(3, 4)", "torch.nn.LSTM"),
        ("from torch.nn import GRUCell", "GRUCell"),
        ("out = torch._VF.lstm(x)", "torch._VF.lstm"),
        ("print(1)", "print(1)"),
    ],
)
def test_a_forbidden_name_is_found(line: str, found: str) -> None:
    assert forbidden("model", line) == [found]


def test_every_module_has_a_docstring() -> None:
    assert [m for m, source in SOURCES.items() if not ast.get_docstring(ast.parse(source))] == []


# Runs commands one after the other in one process, and prints which of some modules have been imported by then.
_RUN = """
import json, sys
from grimmgen.cli import _run
commands, modules = json.loads(sys.argv[1])
for command in commands:
    code = _run(command)
    print(command, code, *sorted(set(modules) & set(sys.modules)), file=sys.stderr)
"""


def imported(commands: list[list[str]], modules: list[str]) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps([commands, modules])], capture_output=True, text=True, check=True
    )
    return [line for line in ran.stderr.splitlines() if line.startswith("[")]


def test_help_imports_neither_pytorch_nor_numpy() -> None:
    commands = [
        "",
        "fetch",
        "vocab",
        "train",
        "eval",
        "generate",
        "export",
        "runs",
        "runs list",
        "runs show",
        "runs plot",
        "runs rm",
    ]
    asked = [[*command.split(), "--help"] for command in commands]
    heavy = ["torch", "numpy", "safetensors", "urllib3"]
    assert imported([*asked, ["--version"]], heavy) == [f"{command} 0" for command in [*asked, ["--version"]]]


def test_commands_without_a_network_do_not_import_pytorch() -> None:
    corpus = open_corpus("sampler")
    run = registry.create("sly-fox", Configuration(), corpus, split_by_hash(corpus), "grimmgen train", {})
    tiny_checkpoint(run="sly-fox").write(run.best_path)
    with Server() as server:
        server.on("/001.txt", answer(b"There was once a king. " * 20))
        commands = [
            ["fetch", "--stories", "1", "--url", server.url],
            ["vocab", "--corpus", "sampler"],
            ["vocab", "--corpus", "sampler", "--check"],
            ["runs", "list"],
            ["runs", "show"],
            ["runs", "path"],
            ["generate", "--length", "20"],
            ["generate", "--length", "20", "--novelty"],
            ["eval", "--novelty"],
            ["eval", "--heatmap", __file__],
            ["eval", "--unit", "1", __file__],
            ["export", "--html", str(run.path / "page.html")],
            ["runs", "rm", "--yes", "sly-fox"],
        ]
        assert imported(commands, ["torch"]) == [f"{command} 0" for command in commands]


def test_generate_imports_only_what_it_uses() -> None:
    corpus = open_corpus("sampler")
    run = registry.create("sly-fox", Configuration(), corpus, split_by_hash(corpus), "grimmgen train", {})
    tiny_checkpoint(run="sly-fox").write(run.best_path)
    command = ["generate", "--length", "20"]
    assert imported([command], ["torch", "rich", "urllib3", "ssl", "filelock", "asyncio"]) == [f"{command} 0"]


def test_importing_grimmgen_is_lazy() -> None:
    code = """if True:
        import sys, grimmgen
        assert not {"numpy", "importlib.metadata"} & set(sys.modules)
        grimmgen.load
        assert "torch" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(getattr(grimmgen, name) for name in grimmgen.__all__)
    with pytest.raises(AttributeError, match="module 'grimmgen' has no attribute 'moral'"):
        grimmgen.moral  # noqa: B018 - the look-up is what is tested


def test_names_of_tests_have_at_most_60_characters() -> None:
    names = [
        name
        for path in Path(__file__).parent.rglob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(names) > 500
    assert [name for name in names if len(name) > 60] == []
