"""Which files a corpus consists of, and what is skipped, with the reason."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import pytest

from grimmgen.errors import GrimmgenError, UsageError
from grimmgen.reading.sources import find_sources


def write(path: Path, content: bytes = b"Once upon a time.\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def found(*arguments: Path | str) -> tuple[list[str], dict[str, str]]:
    """The names of the sources, and the reasons of what was skipped."""
    sources, skipped = find_sources([str(argument) for argument in arguments])
    return [source.name for source in sources], {one.name: one.reason for one in skipped}


def test_directory_is_read_whole_and_the_rest_reported(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "C.TXT",
        "more/a.MD",
        "d.rst",
        "e.Text",
        "page.htm",
        "list.csv",
        "rows.jsonl",
        "more/b.txt",
    ):
        write(tmp_path / name)
    write(tmp_path / "x.html.gz", gzip.compress(b"<p>Once"))
    write(tmp_path / "a.pdf", b"%PDF-1.7")
    write(tmp_path / "image.txt", b"\x89PNG\r\n\x1a\n\0\0")
    write(tmp_path / "empty.txt", b"")
    write(tmp_path / ".DS_Store")
    write(tmp_path / "__MACOSX" / "b.txt")
    write(tmp_path / "notes.py")
    names, skipped = found(tmp_path)
    assert names == [
        "C.TXT",
        "b.txt",
        "d.rst",
        "e.Text",
        "list.csv",
        "more/a.MD",
        "more/b.txt",
        "page.htm",
        "rows.jsonl",
        "x.html.gz",
    ]
    assert skipped == {
        ".DS_Store": "hidden",
        "__MACOSX": "hidden",
        "a.pdf": "a PDF",
        "empty.txt": "empty",
        "image.txt": "a PNG image",
        "notes.py": ".py: read only if it is named",
    }


def test_links_are_followed_once_and_circles_harmless(tmp_path: Path) -> None:
    write(tmp_path / "books" / "b.txt")
    write(tmp_path / "tales" / "z.txt")
    (tmp_path / "tales" / "books").symlink_to(tmp_path / "books")
    (tmp_path / "tales" / "again").symlink_to(tmp_path / "books")
    (tmp_path / "tales" / "a.txt").symlink_to("z.txt")
    (tmp_path / "tales" / "loop").symlink_to(".")
    (tmp_path / "tales" / "gone.txt").symlink_to("nowhere")
    (tmp_path / "tales" / "round.txt").symlink_to("round.txt")
    names, skipped = found(tmp_path / "tales")  # fault 47
    assert names == ["again/b.txt", "z.txt"]
    assert skipped == {
        "a.txt": "the same as z.txt",
        "books": "the same as again",
        "gone.txt": "a link to nothing",
        "loop": "the same as tales",
        "round.txt": "a link to nothing",
    }


def test_file_given_twice_is_one_source(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt")
    os.link(path, tmp_path / "b.txt")
    names, skipped = found(tmp_path, path, tmp_path / "b.txt")
    assert (names, skipped) == (["a.txt"], {"a.txt": "the same as a.txt", "b.txt": "the same as a.txt"})


def test_names_are_as_long_as_they_need_to_be(tmp_path: Path) -> None:
    for name in "x/a.txt", "y/a.txt", "y/b.txt", "z/y/b.txt":
        write(tmp_path / name)
    assert found(tmp_path / "x", tmp_path / "y", tmp_path / "z" / "y")[0] == [
        f"{tmp_path.name}/y/b.txt",
        "x/a.txt",
        "y/a.txt",
        "z/y/b.txt",
    ]


def test_pattern_reads_any_text_it_matches(tmp_path: Path) -> None:
    for name in "lib/a.py", "lib/sub/b.py", "lib/sub/c.txt":
        write(tmp_path / name)
    write(tmp_path / "lib" / "d.py", b"\x7fELF\2\1")
    assert found(tmp_path / "lib" / "**" / "*.py") == (["a.py", "sub/b.py"], {"d.py": "a program"})
    with pytest.raises(UsageError, match="no file matches"):
        found(tmp_path / "*.md")
    strange = write(tmp_path / "a[1].txt")
    assert found(strange)[0] == ["a[1].txt"]


def test_archive_is_read_as_a_directory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "box.zip", "w") as archive:
        for name in "b.txt", "in/c.md", "__MACOSX/b.txt", ".hidden.txt", "../up.txt", "/etc/x.txt", "run.sh":
            archive.writestr(name, "Once upon a time.\n")
        archive.writestr("empty.txt", "")
        archive.writestr("more.txt.gz", gzip.compress(b"Once"))
        archive.writestr("inner.zip", b"PK\x03\x04")
    names, skipped = found(tmp_path)
    assert names == ["box.zip/b.txt", "box.zip/in/c.md", "box.zip/more.txt.gz"]
    outside = "its path leads out of the archive"
    assert skipped == {
        "box.zip/../up.txt": outside,
        "box.zip/etc/x.txt": outside,
        "box.zip/.hidden.txt": "hidden",
        "box.zip/__MACOSX/b.txt": "hidden",
        "box.zip/empty.txt": "empty",
        "box.zip/inner.zip": "a zip archive",
        "box.zip/run.sh": ".sh: read only if it is named",
    }


def test_directory_without_text_is_an_error_with_reasons(tmp_path: Path) -> None:
    write(tmp_path / "a.pdf", b"%PDF-1.7")
    with pytest.raises(GrimmgenError, match=r"has no text file in it; 1 skipped: a\.pdf \(a PDF\)"):
        found(tmp_path)
