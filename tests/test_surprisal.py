"""The heat-map: its bits are the evaluation's, its colours can be read, and no text can act on who reads it."""

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
from grimmgen.evaluation.static import encode_stories, evaluate
from grimmgen.evaluation.surprisal import Surprise, surprises
from grimmgen.network.model import LanguageModel
from grimmgen.runs.registry import Run
from tests.builders import NETWORKS, TEXT, tiny_checkpoint
from tests.program import PROGRAM, Ran, on_terminal

Program = Callable[..., Ran]

HOSTILE = 'The <script>alert("1")</script> & \x1b[31m\x00\u202e\'">{x}\t中\n'


@pytest.mark.parametrize("network", ["lstm1", "gru2-tied", "peephole2", "mogrifier1-1-round"])
@pytest.mark.parametrize("text", [TEXT, "", "a", HOSTILE], ids=["text", "empty", "letter", "hostile"])
def test_the_bits_are_what_evaluation_says_a_text_costs(network: str, text: str) -> None:
    checkpoint = tiny_checkpoint(**NETWORKS[network])
    found = surprises(checkpoint, text)
    assert "".join(s.text for s in found) == checkpoint.vocabulary.normalise(text)
    assert [len(s.text) for s in found[:-2]] == [2] * max(0, len(found) - 2)
    assert found[-1].text == ""
    model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary))
    model.load_weights(checkpoint.weights)
    if text:
        total = evaluate(model, encode_stories([("", text)], checkpoint.vocabulary)).total
        assert sum(s.bits for s in found) == pytest.approx(total.bits, rel=1e-5)


def test_what_was_expected_are_the_best_of_all_and_probabilities() -> None:
    checkpoint = tiny_checkpoint()
    everything = surprises(checkpoint, TEXT, candidates=999)
    few = surprises(checkpoint, TEXT, candidates=3)
    tokens = sorted(map(checkpoint.vocabulary.token, range(len(checkpoint.vocabulary))))
    for s, short in zip(everything, few, strict=True):
        assert sorted(token for token, _ in s.expected) == tokens
        p = [probability for _, probability in s.expected]
        assert math.fsum(p) == pytest.approx(1.0)
        assert p == sorted(p, reverse=True)
        assert short.expected == s.expected[:3]
        if s.text in tokens or not s.text:
            assert s.bits == pytest.approx(-math.log2(dict(s.expected)[s.text or "<end>"]))


def test_a_level_is_by_the_character() -> None:
    assert [heatmap.level(bits) for bits in (0.0, 0.49, 0.5, 1.0, 2.5, 3.9, 5.0, 6.0, 99.0)] == [
        0, 0, 1, 2, 3, 4, 5, 6, 6,
    ]  # fmt: skip
    assert Surprise("th", 3.0, ()).bits_per_character == 1.5
    assert Surprise("", 3.0, ()).bits_per_character == 3.0


def luminance(colour: str) -> float:
    """WCAG's relative luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("palette", [heatmap.LIGHT, heatmap.DARK], ids=["light", "dark"])
def test_every_level_can_be_read_and_the_palette_goes_one_way_in_lightness(
    palette: tuple[tuple[str, str], ...],
) -> None:
    assert len(palette) == len(heatmap.LEVELS) + 1
    for paper, ink in palette:
        dark, light = sorted([luminance(paper), luminance(ink)])
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA
    order = [luminance(paper) for paper, _ in palette]
    assert order in (sorted(order), sorted(order, reverse=True))
    assert len(set(order)) == len(order)


# --- the command line ----------------------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    path = tmp_path / "<i>hostile.txt"
    path.write_bytes(HOSTILE.encode())
    return path


class Page(HTMLParser):
    """The text of a page's body, and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.said: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.said += [value or "" for name, value in attrs if name == "data-said"]
        assert {name for name, _ in attrs} <= {
            "lang", "charset", "name", "content", "http-equiv", "class", "data-said",
        }  # fmt: skip

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.usefixtures("trained")
def test_the_page_holds_all_of_the_text_and_nothing_of_it_acts(
    hostile: Path, run: Program, tmp_path: Path
) -> None:
    target = tmp_path / "out.html"
    assert run("eval", "--heatmap", str(hostile), "--html", str(target)) == (0, "", f"written to {target}\n")
    content = target.read_text(encoding="utf-8")
    page = Page(content)
    assert page.tags == {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "span", "div"}
    assert '<script>alert("1")</script> & \\x1b[31m\\x00\\u202e\'">{x}\t中↵\n■' in page.text
    assert "<i>hostile.txt" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]|https?:|url\\(", content)
    assert "prefers-color-scheme: dark" in content
    assert len(page.said) == len(HOSTILE) // 2 + 1 + len(HOSTILE) % 2
    assert re.fullmatch(r"“th” took \d+\.\d bits; expected: (.+ \d+%( · )?){5}", page.said[0])
    # Each span's colour is that of its bits.
    spans = re.findall(r'<span class="h(\d)" data-said="(.*?) took', content)
    [judged] = json.loads(run("eval", "--heatmap", str(hostile), "--json").out)["texts"]
    assert [int(level) for level, _ in spans] == [heatmap.level(g["bits_per_character"]) for g in judged["ngrams"]]
    assert html.unescape(spans[2][1]) == "“<s”"


@pytest.mark.usefixtures("trained")
def test_json_has_each_ngram_and_the_total(hostile: Path, run: Program) -> None:
    [judged] = json.loads(run("eval", "--heatmap", str(hostile), "--json").out)["texts"]
    assert "".join(gram["text"] for gram in judged["ngrams"]) == HOSTILE.lower()
    [plain] = json.loads(run("eval", str(hostile), "--json").out)
    assert judged["bits_per_character"] == pytest.approx(plain["bits_per_character"], rel=1e-5)
    assert [len(gram["expected"]) for gram in judged["ngrams"]] == [5] * len(judged["ngrams"])


def test_a_pipe_gets_marks_and_no_escape_codes(trained: Run, run: Program, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("the king 中\nThe qqqq")
    ran = run("eval", "--heatmap", str(text))
    assert (ran.code, ran.err) == (0, "")
    assert "\x1b" not in ran.out
    title, first, marks, second, more, legend = ran.out.splitlines()
    assert re.fullmatch(rf"{re.escape(str(text))}: \d+\.\d{{3}} bits per character", title)
    assert (first, second) == ("the king 中↵", "the qqqq■")
    assert legend == "0: <0.5  1: <1  2: <2  3: <3  4: <4  5: <6  6: ≥6   bits per character"
    found = surprises(trained.checkpoint(), text.read_text())
    levels = "".join(str(heatmap.level(s.bits_per_character)) * max(1, len(s.text)) for s in found)
    # A Chinese character is two cells wide.
    expected = (levels[:9] + levels[9] + " " + levels[10]).replace("0", " ").rstrip()
    assert marks == expected
    assert more == levels[11:].replace("0", " ").rstrip()


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
def test_a_terminal_shows_the_colours_that_it_has(hostile: Path, variables: dict[str, str], code: str) -> None:
    set_ = [f"{name}={value}" for name, value in variables.items()]
    ran = on_terminal("env", *set_, *PROGRAM, "eval", "--heatmap", str(hostile), columns=40)
    assert ran.code == 0
    codes = set(re.findall(r"\x1b\[[0-9;]*m", ran.out))
    assert any(code in c for c in codes) if code else not any("48;" in c for c in codes)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", ran.out).splitlines()
    assert max(map(len, lines)) <= 40 or not code
    assert "\x1b" not in "".join(lines)
    assert "\\x1b[31m\\x00\\u202e" in "".join(lines).replace("\n", "")


NOTHING_ELSE = "is shown of one run and nothing else: leave out the other options"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--heatmap"], "--heatmap has nothing to read: give a FILE"),
        (["--html", "x.html"], "--heatmap has nothing to read: give a FILE"),
        (["--heatmap", "--novelty", "FILE"], f"--novelty {NOTHING_ELSE}"),
        (["--heatmap", "--baseline", "FILE"], f"--heatmap {NOTHING_ELSE}"),
        (
            ["--html", "gone/x.html", "FILE"],
            "cannot write gone/x.html (No such file or directory): check the path",
        ),
    ],
    ids=str,
)
@pytest.mark.usefixtures("trained")
def test_what_a_heat_map_cannot_be_made_of(options: list[str], message: str, hostile: Path, run: Program) -> None:
    ran = run("eval", *(str(hostile) if option == "FILE" else option for option in options))
    assert (ran.out, ran.err) == ("", f"error: {message}\n")
    assert ran.code == (1 if "cannot" in message else 2)
