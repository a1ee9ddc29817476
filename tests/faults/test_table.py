"""The table of `tests/README.md`: every fault once, every test that it names is there, none is left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
# By number, the tests that show a fault.
TABLE = {
    int(number): re.findall(r"`([\w/]+\.py)::(\w+)`", row)
    for number, row in re.findall(r"^\| (\d+) \|(.*)\|$", (TESTS / "README.md").read_text("utf-8"), re.MULTILINE)
}


def defined_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def numbers(name: str) -> set[int]:
    """The faults that a test's name has."""
    match = re.match(r"test_faults?_(\d+)(?:_(to|and)_(\d+))?_", name)
    if not match:
        return set()
    first, last = int(match[1]), int(match[3] or match[1])
    return set(range(first, last + 1)) if match[2] == "to" else {first, last}


def test_every_fault_is_in_the_table_once_and_in_order() -> None:
    rows = re.findall(r"^\| (\d+) \|", (TESTS / "README.md").read_text("utf-8"), re.MULTILINE)
    assert rows == [str(number) for number in range(1, 45)]
    assert all(TABLE.values()), "each is shown by a test"


def test_every_test_of_the_table_is_there() -> None:
    named = {(file, name) for shown in TABLE.values() for file, name in shown}
    assert {(file, name) for file, name in named if name not in defined_in(TESTS / file)} == set()


def test_every_test_with_a_number_in_its_name_stands_in_that_row() -> None:
    for path in (TESTS / "faults").glob("test_*.py"):
        for name in defined_in(path):
            for number in numbers(name):
                assert (f"faults/{path.name}", name) in TABLE[number], (number, name)


def test_every_test_of_the_faults_that_is_named_has_the_number_of_its_row() -> None:
    # One test stands for 22 as well: the vocabulary is one of the things that are crafted.
    also = {(22, "test_faults_24_to_28_a_crafted_checkpoint_is_one_line_and_exit_3")}
    for number, shown in TABLE.items():
        for file, name in shown:
            assert not file.startswith("faults/") or number in numbers(name) or (number, name) in also, (
                number,
                name,
            )


def test_names_are_read_as_they_are_meant() -> None:
    assert numbers("test_faults_1_to_7_x") == set(range(1, 8))
    assert numbers("test_faults_10_and_15_x") == {10, 15}
    assert numbers("test_fault_09_x") == {9}
    assert numbers("test_names_are_read") == set()
