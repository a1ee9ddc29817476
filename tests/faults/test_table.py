"""The table of `tests/README.md`: every fault is listed once, and with the tests that show it."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
# The tests that show a fault, by its number.
TABLE = {
    int(number): re.findall(r"`([\w/]+\.py)::(\w+)`", row)
    for number, row in re.findall(r"^\| (\d+) \|(.*)\|$", (TESTS / "README.md").read_text("utf-8"), re.MULTILINE)
}


def defined_in(path: Path) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE))


def numbers(name: str) -> set[int]:
    """The numbers of the faults in a test's name."""
    match = re.match(r"test_faults?_(\d+)(?:_(to|and)_(\d+))?_", name)
    if not match:
        return set()
    first, last = int(match[1]), int(match[3] or match[1])
    return set(range(first, last + 1)) if match[2] == "to" else {first, last}


def test_every_fault_is_in_the_table_once_and_in_order() -> None:
    rows = re.findall(r"^\| (\d+) \|", (TESTS / "README.md").read_text("utf-8"), re.MULTILINE)
    assert rows == [str(number) for number in sorted(TABLE)]
    assert set(range(1, 49)) <= TABLE.keys()
    assert all(TABLE.values()), "each has a test"


def test_every_test_in_the_table_exists() -> None:
    named = {(file, name) for shown in TABLE.values() for file, name in shown}
    defined = {file: defined_in(TESTS / file) for file, _ in named}
    assert {(file, name) for file, name in named if name not in defined[file]} == set()


def test_every_numbered_test_is_in_its_row() -> None:
    for path in (TESTS / "faults").glob("test_*.py"):
        for name in defined_in(path):
            for number in numbers(name):
                assert (f"faults/{path.name}", name) in TABLE[number], (number, name)


def test_every_fault_test_in_a_row_has_its_number() -> None:
    # One test shows fault 22, too: the vocabulary is one of the parts that are crafted.
    also = {(22, "test_faults_24_to_28_a_crafted_checkpoint_is_exit_3")}
    for number, shown in TABLE.items():
        for file, name in shown:
            assert not file.startswith("faults/") or number in numbers(name) or (number, name) in also, (
                number,
                name,
            )


def test_numbers_are_read_from_names() -> None:
    assert numbers("test_faults_1_to_7_x") == set(range(1, 8))
    assert numbers("test_faults_10_and_15_x") == {10, 15}
    assert numbers("test_fault_09_x") == {9}
    assert numbers("test_names_are_read") == set()
