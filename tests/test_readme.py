"""The README says what is there: its commands, its map, its table of subcommands."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer.main

from grimmgen.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[1]


def test_the_sections_stand_in_their_order() -> None:
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == [
        "Two commands",
        "Five minutes with the real tales",
        "Your own text",
        "Many GPUs",
        "Telling",
        "Judging",
        "Commands",
        "The tutorial, and where it lives",
        "The map",
        "Figures",
        "Licence",
    ]


@pytest.mark.parametrize("name", ["main", "tests"])
def test_the_two_commands_are_one_line_each_where_ci_looks_for_them(name: str) -> None:
    block = README.split(f"<!-- ci: {name} -->\n```sh\n")[1].split("```")[0]
    assert block.count("\n") == 1
    assert "--constraint constraints.txt" in block


def test_the_map_names_every_module() -> None:
    named = set(re.findall(r"`([a-z_/]+(?:\.py|/))`", section("The map")))
    package = ROOT / "grimmgen"
    there = {p.name for p in package.glob("*.py") if not p.name.startswith("__")}
    there |= {f"{p.name}/" for p in package.iterdir() if p.is_dir() and not p.name.startswith("__")}
    inner = {p.name for folder in ("cells", "kernels") for p in (package / folder).glob("[a-z]*.py")}
    assert there <= named
    assert inner <= named
    assert named <= there | inner | {"console.py"}


def test_the_pages_have_the_tables_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    page = (folder / "README.md").read_text(encoding="utf-8")
    quality = runpy.run_path(str(folder / "quality.py"))
    assert quality["table"](quality["read_record"]([folder / "quality.jsonl"])) in page
    record = runpy.run_path(str(folder / "record.py"))
    for name in "record-avx2.jsonl", "record.jsonl":
        lines = [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        for script, table in record["tables"](lines).items():
            assert table in page, (name, script)
    for row in record["summary"](lines):
        assert row in section("Figures")


def test_every_subcommand_is_in_the_table() -> None:
    named = re.findall(r"^\| `grimmgen (\w+)` \|", section("Commands"), re.MULTILINE)
    assert named == list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_every_command_line_in_the_readme_is_one_that_the_program_takes() -> None:
    command = typer.main.get_command(app)
    lines = [
        line.split("#")[0]
        for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
        for line in re.findall(r"^grimmgen .*$", block, re.MULTILINE)
    ]
    assert len(lines) > 6
    for line in lines:
        words = shlex.split(line.split(">")[0].split("|")[0])
        subcommand = command.commands[words[1]]  # type: ignore[attr-defined]
        # Parsing raises if an option is not known or a value has the wrong type; nothing is run.
        subcommand.make_context(words[1], words[2:], resilient_parsing=False)


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_changelog_has_a_section_for_what_is_not_released() -> None:
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
