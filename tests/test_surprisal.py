"""Surprisal and its heat-map: bits match the evaluation, colours are legible, hostile text stays inert."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from grimmgen.cli import heatmap
from grimmgen.evaluation.static import encode_for_evaluation, evaluate
from grimmgen.evaluation.surprisal import TokenSurprisal, surprisal
from grimmgen.network.model import LanguageModel
from grimmgen.runs.registry import Run
from tests.builders import NETWORKS, TEXT, tiny_checkpoint
from tests.program import PROGRAM, Ran, on_terminal

Program = Callable[..., Ran]

HOSTILE = 'The <script>alert("1")</script> & \x1b[31m\x00\u202e\'">{x}\t中\n'


@pytest.mark.parametrize("network", [n for n in NETWORKS if n == "lstm1" or n.endswith(("2-tied", "1-1-round"))])
@pytest.mark.parametrize("text", [TEXT, "", "a", HOSTILE], ids=["text", "empty", "letter", "hostile"])
def test_surprisals_sum_to_the_score_of_the_text(network: str, text: str) -> None:
    checkpoint = tiny_checkpoint(**NETWORKS[network])
    tokens = surprisal(checkpoint, text)
    assert "".join(token.text for token in tokens) == checkpoint.vocabulary.normalise(text)
    assert [len(token.text) for token in tokens[:-2]] == [2] * max(0, len(tokens) - 2)
    assert tokens[-1].text == ""
    model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary))
    model.load_weights(checkpoint.weights)
    if text:
        total = evaluate(model, encode_for_evaluation([("", text)], checkpoint.vocabulary)).total
        assert sum(token.bits for token in tokens) == pytest.approx(total.bits, rel=1e-5)


def test_expected_tokens_are_the_most_probable() -> None:
    checkpoint = tiny_checkpoint()
    full = surprisal(checkpoint, TEXT, candidates=999)
    best = surprisal(checkpoint, TEXT, candidates=3)
    vocabulary = sorted(map(checkpoint.vocabulary.token, range(len(checkpoint.vocabulary))))
    for token, short in zip(full, best, strict=True):
        assert sorted(text for text, _ in token.expected) == vocabulary
        p = [probability for _, probability in token.expected]
        assert math.fsum(p) == pytest.approx(1.0)
        assert p == sorted(p, reverse=True)
        assert short.expected == token.expected[:3]
        if token.text in vocabulary or not token.text:
            assert token.bits == pytest.approx(-math.log2(dict(token.expected)[token.text or "<end>"]))


def test_level_depends_on_bits_per_character() -> None:
    assert [heatmap.SCALE.level(bits) for bits in (0.0, 0.49, 0.5, 1.0, 2.5, 3.9, 5.0, 6.0, 99.0)] == [
        0, 0, 1, 2, 3, 4, 5, 6, 6,
    ]  # fmt: skip
    assert TokenSurprisal("th", 3.0, ()).bits_per_character == 1.5
    assert TokenSurprisal("", 3.0, ()).bits_per_character == 3.0


def luminance(colour: str) -> float:
    """WCAG's relative luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("palette", [heatmap.SCALE.light, heatmap.SCALE.dark], ids=["light", "dark"])
def test_palette_has_contrast_and_monotonic_lightness(
    palette: tuple[tuple[str, str], ...],
) -> None:
    assert len(palette) == len(heatmap.SCALE.bounds) + 1
    for background, foreground in palette:
        dark, light = sorted([luminance(background), luminance(foreground)])
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA
    order = [luminance(background) for background, _ in palette]
    assert order in (sorted(order), sorted(order, reverse=True))
    assert len(set(order)) == len(order)


# A file with NUL is not text.
FILE = HOSTILE.replace("\0", "")

# --- the command line ----------------------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    path = tmp_path / "<i>hostile.txt"
    path.write_bytes(FILE.encode())
    return path


class Page(HTMLParser):
    """The text of a page's body, and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.tooltips: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.tooltips += [value or "" for name, value in attrs if name == "data-tooltip"]
        assert {name for name, _ in attrs} <= {
            "lang", "charset", "name", "content", "http-equiv", "class", "data-tooltip",
        }  # fmt: skip

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.usefixtures("trained")
def test_html_page_has_the_whole_text_and_escapes_it(hostile: Path, run: Program, tmp_path: Path) -> None:
    target = tmp_path / "out.html"
    assert run("eval", "--heatmap", str(hostile), "--html", str(target)) == (0, "", f"written to {target}\n")
    content = target.read_text(encoding="utf-8")
    page = Page(content)
    assert page.tags == {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "span", "div"}
    assert '<script>alert("1")</script> & \\x1b[31m\\u202e\'">{x}\t中↵\n■' in page.text
    assert "<i>hostile.txt" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]|https?:|url\\(", content)
    assert "prefers-color-scheme: dark" in content
    assert len(page.tooltips) == len(FILE) // 2 + 1 + len(FILE) % 2
    assert re.fullmatch(r"“th”: \d+\.\d bits; expected: (.+ \d+%( · )?){5}", page.tooltips[0])
    # The class of each span is the level of its bits.
    spans = re.findall(r'<span class="h(\d)" data-tooltip="(.*?): \d', content)
    [shown] = json.loads(run("eval", "--heatmap", str(hostile), "--json").out)["texts"]
    assert [int(level) for level, _ in spans] == [
        heatmap.SCALE.level(g["bits_per_character"]) for g in shown["ngrams"]
    ]
    assert html.unescape(spans[2][1]) == "“<s”"


@pytest.mark.usefixtures("trained")
def test_heatmap_json_has_each_ngram_and_the_total(hostile: Path, run: Program) -> None:
    [shown] = json.loads(run("eval", "--heatmap", str(hostile), "--json").out)["texts"]
    assert "".join(gram["text"] for gram in shown["ngrams"]) == FILE.lower()
    [plain] = json.loads(run("eval", str(hostile), "--json").out)
    assert shown["bits_per_character"] == pytest.approx(plain["bits_per_character"], rel=1e-5)
    assert [len(gram["expected"]) for gram in shown["ngrams"]] == [5] * len(shown["ngrams"])


def test_heatmap_in_a_pipe_has_digits_for_colours(trained: Run, run: Program, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("the king 中\nThe qqqq")
    ran = run("eval", "--heatmap", str(text))
    assert (ran.code, ran.err) == (0, "")
    assert "\x1b" not in ran.out
    title, first, digits, second, more_digits, legend = ran.out.splitlines()
    assert re.fullmatch(rf"{re.escape(str(text))}: \d+\.\d{{3}} bits per character", title)
    assert (first, second) == ("the king 中↵", "the qqqq■")
    assert legend == "0: <0.5  1: <1  2: <2  3: <3  4: <4  5: <6  6: ≥6   bits per character"
    tokens = surprisal(trained.checkpoint(), text.read_text())
    levels = "".join(str(heatmap.SCALE.level(t.bits_per_character)) * max(1, len(t.text)) for t in tokens)
    # A Chinese character is two terminal cells wide.
    expected = (levels[:9] + levels[9] + " " + levels[10]).replace("0", " ").rstrip()
    assert digits == expected
    assert more_digits == levels[11:].replace("0", " ").rstrip()


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"COLORTERM": "truecolor"}, "48;2;"),
        ({"COLORTERM": ""}, "48;5;"),
        ({"NO_COLOR": "1", "COLORTERM": "truecolor"}, ""),
        ({"TERM": "dumb", "COLORTERM": ""}, ""),
        ({"TERM": "linux", "COLORTERM": ""}, ""),
    ],
    ids=["24 bits", "256", "NO_COLOR", "dumb", "16"],
)
@pytest.mark.usefixtures("trained")
def test_terminal_heatmap_uses_the_colours_available(hostile: Path, variables: dict[str, str], code: str) -> None:
    environment = [f"{name}={value}" for name, value in variables.items()]
    ran = on_terminal("env", *environment, *PROGRAM, "eval", "--heatmap", str(hostile), columns=40)
    assert ran.code == 0
    codes = set(re.findall(r"\x1b\[[0-9;]*m", ran.out))
    assert any(code in c for c in codes) if code else not any("48;" in c for c in codes)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", ran.out).splitlines()
    assert max(map(len, lines)) <= 40 or not code
    assert "\x1b" not in "".join(lines)
    assert "\\x1b[31m\\u202e" in "".join(lines).replace("\n", "")


ALONE = "takes one run and no other measure"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--heatmap"], "--heatmap needs a text"),
        (["--html", "x.html"], "--heatmap needs a text"),
        (["--heatmap", "--novelty", "FILE"], f"--novelty {ALONE}"),
        (["--heatmap", "--baseline", "FILE"], f"--heatmap {ALONE}"),
        (
            ["--html", "gone/x.html", "FILE"],
            "cannot write gone/x.html (No such file or directory)",
        ),
    ],
    ids=str,
)
@pytest.mark.usefixtures("trained")
def test_heatmap_refuses_conflicting_options(
    options: list[str], message: str, hostile: Path, run: Program
) -> None:
    ran = run("eval", *(str(hostile) if option == "FILE" else option for option in options))
    assert ran.out == ""
    assert ran.err.startswith(f"error: {message}")
    assert ran.code == (1 if "cannot" in message else 2)
