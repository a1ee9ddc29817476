"""The README and docs agree with the program and the source tree: commands, map, tables, links, code."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

import grimmgen
from grimmgen.cli import app
from grimmgen.configuration import Configuration, from_arguments
from tests.builders import TEXTS, TINY
from tests.test_architecture import PACKAGES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}


def section(page: str, title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[1]


def test_readme_is_short() -> None:
    assert README.count("\n") <= 120


@pytest.mark.parametrize("name", ["main", "tests"])
def test_commands_for_ci_install_what_was_tested(name: str) -> None:
    blocks = re.findall(rf"^<!-- ci: {name} -->\n```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).splitlines()
    assert lines[0] == "python3 -m venv .venv && . .venv/bin/activate"
    assert "--constraint constraints.txt" in lines[1]
    # One command a line: bash stops at the first that fails.
    assert {line.split()[0] for line in lines[1:]} <= {"pip", "grimmgen", "python"}


def map_rows() -> list[tuple[str, str]]:
    rows = section(DOCS["architecture"], "The map")
    return re.findall(r"^\| `([\w/]+(?:/|\.py))` \| (.*) \|$", rows, re.MULTILINE)


def test_map_names_every_package_and_module() -> None:
    package = ROOT / "grimmgen"
    named = {row for row, _ in map_rows()}
    named |= {row + name for row, contents in map_rows() for name in re.findall(r"`(\w+(?:/|\.py))`", contents)}
    modules = {path.relative_to(package) for path in package.rglob("*.py")}
    # The map has no names of single cells, commands and kernels.
    summarised = {Path("cli"), Path("network/cells"), Path("network/backends/cpu"), Path("network/backends/cuda")}
    expected = {f"{m.parent.as_posix()}/" for m in modules if m.name == "__init__.py" and m.parent.name}
    expected |= {m.as_posix() for m in modules if m.name[0] != "_" and m.parent not in summarised}
    assert expected - named == set()
    folders = {path.name for path in package.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert folders <= {name.split("/")[0] for name in named}
    assert {name for name in named if not (package / name).exists()} == set()


def test_map_is_in_the_order_of_imports() -> None:
    rows = [row.removesuffix(".py").strip("/").replace("/", ".") for row, _ in map_rows()]
    assert [row for row in rows if row in PACKAGES] == [name for name in PACKAGES if name != "__main__"]


def test_files_of_the_tutorial_table_exist() -> None:
    paths = re.findall(r"`([\w/]+\.py)`", DOCS["tutorial"].split("\n## ")[0])
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / "grimmgen" / path).exists()] == []


@pytest.mark.slow
def test_tutorial_runs() -> None:
    cells = re.findall(r"^```python\n(.*?)^```$", DOCS["tutorial"], re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for cell in cells:
        exec(cell.replace("epochs = 15", "epochs = 1"), names)  # noqa: S102 - the page is ours
    assert names["perplexity"] < len(names["vocabulary"])
    assert len(names["vocabulary"].decode(names["story"])) > 300


def test_notebook_of_the_tutorial_is_up_to_date() -> None:
    render = runpy.run_path(str(ROOT / "docs" / "notebook.py"))["render"]
    notebook = (ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8")
    assert render() == notebook, "run python docs/notebook.py"


def test_figures_are_those_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    record = runpy.run_path(str(ROOT / "benchmarks" / "record.py"))
    assert record["stale"]() == [], "run python benchmarks/record.py --write"


def test_readme_has_the_figure_of_the_bundled_model() -> None:
    [figure] = re.findall(r"^\| test \| \w+ \| [\d.]+ \| ([\d.]+) \|", DOCS["pretrained"], re.MULTILINE)
    assert f"needs {float(figure):.2f}." in section(README, "Figures")


def test_stale_figures_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    record = runpy.run_path(str(ROOT / "benchmarks" / "record.py"))
    records = map(record["Record"].read, sorted((ROOT / "benchmarks" / "records").glob("*.jsonl")))
    found = next(one for one in records if "command.py" in one.scripts)
    before = record["sections"](found)
    for line in found.lines:
        if line["ran"][0] == "command.py":
            line["figures"]["share"] = 0.5
    assert record["sections"](found) != before


def test_table_has_every_command() -> None:
    named = re.findall(r"^\| `grimmgen (\w+)` \|", section(README, "Commands"), re.MULTILINE)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert named == [name for name, command in commands.items() if not command.hidden]


def test_program_accepts_every_command_line() -> None:
    command = typer.main.get_command(app)
    lines = [
        line.split("#")[0]
        for page in (README, *DOCS.values())
        for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
        for line in re.findall(r"(?:^|\| |-- )(grimmgen .*)$", block.replace("\\\n", ""), re.MULTILINE)
    ]
    assert len(lines) > 60
    for line in lines:
        words = shlex.split(line.split(">")[0].split("|")[0])
        subcommand = command.commands[words[1]]  # type: ignore[attr-defined]
        # Parsing raises on an unknown option or a value of the wrong type; the command is not run.
        subcommand.make_context(words[1], words[2:], resilient_parsing=False)


def test_python_example_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    [example] = re.findall(r"```python\n(.*?)```", section(README, "From Python"), re.DOTALL)
    assert f"```python\n{example}```" in DOCS["python"]
    fit, given = grimmgen.fit, dict[str, Any]()

    def quickly(corpus: str, **options: Any) -> grimmgen.Model:
        given.update(from_arguments(Configuration, {name: options[name] for name in options if name != "preset"}))
        assert corpus == "sampler"
        return fit(TEXTS, **TINY)

    monkeypatch.setattr(grimmgen, "fit", quickly)
    monkeypatch.chdir(tmp_path)
    exec(example, {})  # noqa: S102 - the README is ours
    assert given["budget"] == 30
    assert (tmp_path / "fox.safetensors").exists()
    # The page on checkpoints reads such a file.
    [reading] = re.findall(r"```python\n(.*?)```", section(DOCS["architecture"], "A checkpoint"), re.DOTALL)
    exec(reading, {})  # noqa: S102


def test_links_point_to_files() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("[bct]*/README.md")]
    for page in pages:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_citation_has_the_version_of_the_package() -> None:
    [cited] = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert f'\nversion = "{cited}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_changelog_has_an_unreleased_section() -> None:
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
