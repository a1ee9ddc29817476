"""Hostile archives, tables, directories and encodings (faults 45-48)."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from grimmgen.configuration import Configuration
from grimmgen.errors import GrimmgenError, IntegrityError
from grimmgen.reading import archives, tables
from grimmgen.reading.formats import Reading, is_table, read_records, read_text
from grimmgen.reading.sources import find_sources
from tests.test_formats import book, zstd


def read(path: Path) -> tuple[list[str], Reading]:
    [one], _ = find_sources([str(path)])
    reading = Reading()
    options = Configuration()
    return list((read_records if is_table(one) else read_text)(one, options, reading)), reading


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


# --- archives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz", "a.zip"])
def test_fault_45_a_bomb_ends_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(archives, "_ALLOWANCE", 1 << 20)
    bomb = b"the king " * (1 << 20)
    packed = {"a.txt.gz": gzip.compress(bomb), "a.txt.xz": lzma.compress(bomb), "a.zip": zipped({"a.txt": bomb})}
    path = write(tmp_path / name, packed[name])
    with pytest.raises(IntegrityError, match=r"unpacks to more than \d+ MB") as caught:
        read(path)
    assert caught.value.remedy == "unpack it and give the text in it"
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing was written"


def test_fault_45_a_bomb_takes_little_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt.gz", gzip.compress(b"the king " * (8 << 20)))
    code = """if True:
        import resource, sys
        from grimmgen.configuration import Configuration
        from grimmgen.reading.formats import Reading, read_text
        from grimmgen.reading.sources import find_sources
        [one], _ = find_sources(sys.argv[1:])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        length = sum(map(len, read_text(one, Configuration(), Reading())))
        print(length, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"""
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    length, more = map(int, ran.stdout.split())
    assert length == 9 * (8 << 20)
    assert more < 32 << 10, "kilobytes"


def test_fault_45_an_archive_in_an_archive_is_skipped(tmp_path: Path) -> None:
    inner = zipped({"deep.txt": b"deep"})
    path = write(
        tmp_path / "a.zip",
        zipped({"inner.zip": inner, "b.txt.gz": gzip.compress(gzip.compress(b"x")), "c.txt": b"x"}),
    )
    sources, skipped = find_sources([str(path)])
    assert [one.name for one in sources] == ["a.zip/c.txt"]
    assert {one.name: one.reason for one in skipped} == {
        "a.zip/inner.zip": "a zip archive",
        "a.zip/b.txt.gz": "a gzip file",
    }


def test_fault_45_nothing_is_written_outside_the_cache(tmp_path: Path) -> None:
    hostile = {"../up.txt": b"x", "/etc/abs.txt": b"x", "a/../../up.txt": b"x", "C:\\x.txt": b"x", "ok.txt": b"ok"}
    path = write(tmp_path / "in" / "a.zip", zipped(hostile))
    sources, skipped = find_sources([str(path)])
    assert {one.name for one in sources} <= {"a.zip/ok.txt", "a.zip/C:\\x.txt", "a.zip/C:/x.txt"}
    assert len(skipped) == 3
    for one in sources:
        list(read_text(one, Configuration(), Reading()))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.zip", "in"]


@pytest.mark.parametrize("suffix", ["txt.gz", "txt.bz2", "txt.xz", "txt.zst", "zip", "epub"])
def test_fault_45_damaged_archives_are_one_error(tmp_path: Path, suffix: str) -> None:
    text = b"the king and the frog " * 40
    good = {
        "txt.gz": gzip.compress(text),
        "txt.bz2": bz2.compress(text),
        "txt.xz": lzma.compress(text),
        "txt.zst": zstd(text),
        "zip": zipped({"a.txt": text}),
        "epub": book(tmp_path / "a.epub").read_bytes(),
    }[suffix]
    for at in range(0, len(good), max(1, len(good) // 50)):
        path = tmp_path / f"{at}.{suffix}"
        write(path, good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :])
        with contextlib.suppress(GrimmgenError):
            read(path)


# --- tables --------------------------------------------------------------------------------------------------

GOOD = "id,text\n1,Once\n2,upon\n"


@pytest.mark.parametrize(
    ("bad", "first"),
    [
        ("3\n", "line 4: 1 cells instead of 2"),
        ("3,a,b\n", "line 4: 3 cells instead of 2"),
        ('3,"a"b\n', "line 4: ',' expected after '\"'"),
        ("3,a\0b\n", "line 4: a NUL"),
    ],
)
def test_fault_46_a_bad_row_is_skipped_and_named(tmp_path: Path, bad: str, first: str) -> None:
    [one], _ = find_sources([str(write(tmp_path / "a.csv", (GOOD + bad + "4,a time\n").encode()))])
    reading = Reading()
    assert list(read_records(one, Configuration(), reading)) == ["Once", "upon", "a time"]
    assert reading.rows
    assert (reading.rows.good, reading.rows.bad, reading.rows.first_bad) == (3, 1, first)


def test_fault_46_an_unclosed_quotation_mark_loses_one_row(tmp_path: Path) -> None:
    content = GOOD + '3,"open\n' + "".join(f"{n},row {n}\n" for n in range(4, 1000))
    texts, reading = read(write(tmp_path / "a.csv", content.encode()))
    assert texts == ["Once", "upon", *(f"row {n}" for n in range(4, 1000))]
    assert reading.rows
    assert (reading.rows.bad, reading.rows.first_bad) == (1, "line 4: a quotation mark that is not closed")


def test_fault_46_a_vast_cell_is_skipped_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "LONGEST_ROW", 10_000)
    vast = "x" * 1_000_000
    for content in GOOD + f"3,{vast}\n4,end\n", GOOD + f'3,"{vast}"\n4,end\n':
        texts, reading = read(write(tmp_path / "a.csv", content.encode()))
        assert texts == ["Once", "upon", "end"]
        assert reading.rows
        assert (reading.rows.bad, reading.rows.first_bad.partition(":")[0]) == (1, "line 4")
    texts, reading = read(
        write(tmp_path / "a.jsonl", f'{{"text": "a"}}\n{{"text": "{vast}"}}\n{{"text": "b"}}'.encode())
    )
    assert (texts, reading.rows and reading.rows.bad) == (["a", "b"], 1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not JSON", "not JSON (column 1)"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ("[1]", "not an object"),
        ('{"title": "x"}', "no field 'text'"),
        ('{"text": 3}', "the field 'text' is not text"),
        ('{"text": "a", "text": "b"}', "the key 'text' twice"),
        ('{"text": "\\ud83d"}', "half of a surrogate pair"),
        ('{"text": "a\\u0000b"}', "a NUL"),
        ('{"n": ' + "9" * 5000 + "}", "Exceeds the limit"),
    ],
    ids=lambda value: value[:20],
)
def test_fault_46_a_bad_json_line_is_skipped_and_named(tmp_path: Path, line: str, reason: str) -> None:
    content = '{"text": "one"}\n' + line + '\n{"text": "two"}\n'
    texts, reading = read(write(tmp_path / "a.jsonl", content.encode()))
    assert texts == ["one", "two"]
    assert reading.rows
    assert reading.rows.bad == 1
    assert reading.rows.first_bad.startswith(f"line 2: {reason}")


@pytest.mark.parametrize(("name", "content"), [("a.csv", "text,n\na\nb\n"), ("a.jsonl", "a\nb\n")])
def test_fault_46_a_file_of_bad_rows_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(GrimmgenError, match=rf"{name} has no row that can be read \(line \d"):
        read(write(tmp_path / name, content.encode()))


# --- directories ---------------------------------------------------------------------------------------------


def test_fault_47_everything_is_read_once_or_reported(tmp_path: Path) -> None:
    tales = tmp_path / "tales"
    write(tales / "sub" / "a.txt", b"a")
    (tales / "sub" / "up").symlink_to(tales)
    (tales / "other").symlink_to(tales / "sub")
    (tales / "gone").symlink_to("nowhere")
    os.link(tales / "sub" / "a.txt", tales / "b.txt")
    os.mkfifo(tales / "pipe.txt")
    sources, skipped = find_sources([str(tales)])
    assert [one.name for one in sources] == ["b.txt"]
    assert {one.name: one.reason for one in skipped} == {
        "sub/a.txt": "the same as b.txt",
        "gone": "a link to nothing",
        "other": "the same as sub",
        "sub/up": "the same as tales",
        "pipe.txt": "is not a file",
    }


_AS_NOBODY = """if True:
    import os, sys
    from grimmgen.errors import GrimmgenError
    from grimmgen.reading.sources import find_sources
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        sources, skipped = find_sources(sys.argv[1:])
        print([one.name for one in sources], [(one.name, one.reason) for one in skipped])
    except GrimmgenError as error:
        print(error)
"""


def as_nobody(path: Path) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(path)], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that another user can enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of files are Unix's")
def test_fault_47_what_cannot_be_read_is_reported(public: Path) -> None:
    write(public / "tales" / "a.txt", b"a")
    write(public / "tales" / "private.txt", b"a").chmod(0)
    write(public / "tales" / "closed" / "b.txt", b"a").parent.chmod(0)
    denied = "cannot be read: Permission denied"
    assert as_nobody(public / "tales") == f"['a.txt'] [('closed', '{denied}'), ('private.txt', '{denied}')]\n"
    (public / "tales").chmod(0)
    said = as_nobody(public / "tales")
    assert said.startswith(f"cannot read {public / 'tales'} (Permission denied): ")
    # The remedy is run, by whoever may do so; then it works.
    subprocess.run(said.rpartition("as with ")[2], shell=True, check=True)  # noqa: S602 - what was printed
    (public / "tales" / "closed").chmod(0o755)
    for path in public.rglob("*"):
        path.chmod(path.stat().st_mode | 0o555)
    assert "b.txt" in as_nobody(public / "tales")


# --- encodings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.txt", gzip.compress(b"x" * 99, mtime=0), "is a gzip file"),
        ("a.txt", b"%PDF-1.7\n", "is a PDF"),
        ("a.md", b"\x89PNG\r\n\x1a\n\0\0", "is a PNG image"),
        ("a.txt", zipped({"a.txt": b"x"}), "is a zip archive"),
        ("a.txt", zipped({"[Content_Types].xml": b"x", "word/document.xml": b"x"}), "is a Word document"),
        ("a.csv", zipped({"xl/workbook.xml": b"x"}), "is an Excel workbook"),
        ("a.txt", b"\1\2\3\4" * 99, "is not text"),
        ("a.txt", b"the king\0 and", "is not text"),
        ("a.txt.gz", b"Once upon a time", "is damaged"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_fault_48_a_file_that_pretends_is_named(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    with pytest.raises(GrimmgenError, match=what) as caught:
        read(write(tmp_path / name, content))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("content", "suffix"), [(gzip.compress(b"once", mtime=0), ".gz"), (zipped({"a.txt": b"once"}), ".zip")]
)
def test_fault_48_the_remedy_for_a_wrong_name_works(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(GrimmgenError, match=rf"let its name end in {suffix}, and it is unpacked"):
        read(path)
    assert read(path.rename(tmp_path / f"a.txt{suffix}"))[0] == ["once"]


def test_fault_48_the_remedy_for_a_doubtful_encoding_works(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "фея".encode("cp1251"))
    with pytest.raises(GrimmgenError, match="windows-1251 reads “фея”"):
        read(path)
    [one], _ = find_sources([str(path)])
    assert "".join(read_text(one, Configuration(encoding="cp1251"), Reading())) == "фея"


def test_fault_48_json_lines_of_any_key_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "жил"}, ensure_ascii=False).encode("cp1251") + b"\n")
    with pytest.raises(GrimmgenError, match="its encoding is not certain"):
        read(path)
