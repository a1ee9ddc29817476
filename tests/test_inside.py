"""What units, gates and memory do: exact numbers, features by example, a control that chance does not pass."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grimmgen.cli import cells as view
from grimmgen.evaluation import activations, features
from grimmgen.evaluation.activations import TokenisedText, record, tokenise, trace_unit
from grimmgen.evaluation.context import context_losses
from grimmgen.evaluation.features import FEATURES, token_features
from grimmgen.evaluation.surprisal import surprisal
from grimmgen.evaluation.units import correlate, passage
from grimmgen.network.backends.numpy import Stepper, TracingStepper
from grimmgen.network.cells import cells
from grimmgen.network.model import LanguageModel
from grimmgen.runs.registry import Run
from grimmgen.text.vocabulary import END
from tests.browser import browser, executable
from tests.builders import NETWORKS, TEXT, tiny_checkpoint, tiny_configuration
from tests.program import PROGRAM, Ran, on_terminal
from tests.test_surprisal import FILE, HOSTILE, Page, luminance

Program = Callable[..., Ran]

ONE_OF_EACH = [name for name in NETWORKS if re.fullmatch(r"\w+2-embedded|mogrifier2-2-rounds", name)]


# --- activations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", cells())
def test_saved_arrays_begin_with_the_gates_in_order(cell: str) -> None:
    spec = cells()[cell]
    checkpoint = tiny_checkpoint(**NETWORKS["mogrifier1-1-round" if cell == "mogrifier" else f"{cell}1"])
    weights = {n: 0 * w if re.search("peephole|recurrent|[qr]$", n) else w for n, w in checkpoint.weights.items()}
    state = np.zeros((len(spec.states), 1, 1, 3), np.float32)
    [gates] = TracingStepper(checkpoint.configuration, weights, state).trace([4])
    inputs = weights["embedding"][4] if spec.pre_step else np.eye(1, len(checkpoint.vocabulary), 4)[0]
    # From a zero state each gate is σ of its columns.
    z = inputs @ weights["layers.0.input_weight"] + weights["layers.0.bias"]
    for name, gate, columns in zip(spec.gates, gates, np.split(z, len(spec.gates)), strict=True):
        if name != spec.candidate:
            np.testing.assert_allclose(gate[0], 1 / (1 + np.exp(-columns)), rtol=1e-5)


@pytest.mark.parametrize("network", ONE_OF_EACH)
def test_recorded_states_are_those_of_each_text_alone(network: str) -> None:
    checkpoint = tiny_checkpoint(**NETWORKS[network])
    texts = tokenise([("a", ["the king"]), ("b", [TEXT, TEXT]), ("c", ["the"])], checkpoint.vocabulary, 999)
    found = record(checkpoint, texts)
    begin, all_gates = 0, []
    for text in texts:
        state = np.zeros((len(cells()[checkpoint.configuration.cell].states), 2, 1, 3), np.float32)
        stepper = Stepper(checkpoint.configuration, checkpoint.weights, state)
        stepper.step([END])
        for number, token in enumerate(text.ids):
            stepper.step([token])
            np.testing.assert_allclose(found.states[begin + number], state[-1, :, 0].ravel(), atol=1e-6)
        trace = trace_unit(checkpoint, text, layer=1, unit=2)
        np.testing.assert_allclose(trace.states, found.states[begin : begin + len(text.ids), 5], atol=1e-6)
        all_gates.append(np.array(list(trace.gates.values())))
        begin += len(text.ids)
    assert begin == len(found.states)
    gates = np.concatenate(all_gates, axis=1)
    for k, name in enumerate(trace.gates):
        if name != cells()[checkpoint.configuration.cell].candidate:
            assert found.closed[1, k, 2] == pytest.approx((gates[k] < 0.1).mean())
            assert found.open[1, k, 2] == pytest.approx((gates[k] > 0.9).mean())


def test_a_long_text_is_cut_at_the_limit() -> None:
    vocabulary = tiny_checkpoint().vocabulary
    pieces = iter([TEXT] * 10_000)
    texts = tokenise([("a", ["The"]), ("empty", [""]), ("b", pieces), ("c", ["the"])], vocabulary, 30)
    assert [(text.name, len(text.ids)) for text in texts] == [("a", 2), ("b", 28)]
    assert texts[1].text == texts[1].cased == (TEXT * 9)[:56]
    assert texts[0].cased == "The"
    assert sum(1 for _ in pieces) > 9_000, "the rest is not read"


def test_units_of_a_large_model_are_of_fewer_tokens() -> None:
    assert activations.token_limit(tiny_configuration()) == 1 << 16
    assert activations.token_limit(tiny_configuration(hidden=4096, layers=2)) == (1 << 26) // 8192


# --- features ------------------------------------------------------------------------------------------------


def values(name: str, text: str) -> str:
    """The values of a feature for each character, as one digit each."""
    [feature] = [feature for feature in FEATURES if feature.name == name]
    found = feature.of_characters(text.lower(), text)
    if name.startswith("position"):
        found = np.expm1(found)
    return "".join(str(round(float(value))) for value in found)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("inside quotation marks", 'he: "no." so', "000011110000"),
        ("inside quotation marks", 'a "b c" d "e', "001111000011"),
        # A quotation that goes on in the next paragraph is opened twice, and closed once.
        ("inside quotation marks", '"a\n\n"b" c', "111111000"),
        ("inside quotation marks", "„a“ »b« « c » d", "110011001111000"),
        ("inside quotation marks", "no marks", "00000000"),
        ("inside brackets", "a(b[c])d)e(", "01122100001"),
        ("in a name", "The king, Otto Rex said: Go. No", "0000000000111101110000000000000"),
        ("vowel", "Aéb ы", "11001"),
        ("digit", "a1 ٣", "0101"),
        ("space", "a b\n", "0101"),
        ("punctuation", "a, b's-x. “", "01000000101"),
        ("end of a sentence", "a. b! c。", "01001001"),
        ("position in the word", "abc de", "123012"),
        ("position in the clause", "ab, cd.", "1201230"),
        ("position in the sentence", "ab, cd. e", "123456012"),
        ("position in the line", "ab\ncd\n", "120120"),
        ("position in the line", "abcd", "0000"),
        ("indentation of the line", "a\n  b\n c", "0022221" + "1"),
        ("position in the text", "abc", "012"),
        ("position in the text", "", ""),
    ],
)
def test_a_feature_has_these_values(name: str, text: str, expected: str) -> None:
    assert values(name, text) == expected


def test_features_of_a_token_are_a_mean_or_its_last() -> None:
    found = dict(zip([f.name for f in FEATURES], token_features("the kin", "the Kin", [2, 2, 2, 1]), strict=True))
    assert found["vowel"].tolist() == [0.0, 0.5, 0.5, 0.0]
    assert found["space"].tolist() == [0.0, 0.5, 0.0, 0.0]
    assert np.expm1(found["position in the word"]).round().tolist() == [2, 0, 2, 3]
    assert found["in a name"].tolist() == [0.0, 0.0, 1.0, 1.0]
    # A token may have no character of its own.
    empty = token_features("ab", "ab", [0, 1, 0, 1])
    assert empty.shape == (len(FEATURES), 4)


def test_features_of_a_hostile_text_are_finite() -> None:
    for text in HOSTILE, "", "\u0130" * 3, '"' * 9, ")(" * 4:
        read = TokenisedText.of("", text, tiny_checkpoint().vocabulary)
        assert np.isfinite(token_features(read.text, read.cased, read.lengths)).all()


# --- units ---------------------------------------------------------------------------------------------------


def smooth_noise(random: np.random.Generator, rows: int, tokens: int) -> np.ndarray:
    """Independent rows that vary slowly, as states do."""
    steps = random.normal(size=(rows, tokens))
    found = np.zeros((rows, tokens))
    for t in range(1, tokens):
        found[:, t] = 0.95 * found[:, t - 1] + steps[:, t]
    return found


def test_a_planted_unit_is_found_and_the_others_are_not() -> None:
    random = np.random.default_rng(0)
    states = smooth_noise(random, 12, 2000)
    wanted = smooth_noise(random, 3, 2000)
    states[7] -= 3 * wanted[1]
    ids = random.integers(2, 9, 2000)
    rows = np.stack([wanted[0], wanted[1], np.ones(2000), wanted[2]])
    best, *others = correlate(states.T.astype(np.float32), rows, ids)
    assert (best.feature, best.units[0], best.significant) == (1, 7, True)
    assert best.coefficients[0] == pytest.approx(np.corrcoef(states[7], wanted[1])[0, 1], abs=1e-5)
    assert best.beyond_token == pytest.approx(best.coefficients[0], abs=0.02)
    assert best.p < 0.01
    # A constant feature is left out; for one in twenty sets of features chance would pass.
    assert sorted(one.feature for one in others) == [0, 3]
    assert not any(one.significant for one in others)


def test_chance_passes_in_few_of_many_trials() -> None:
    random = np.random.default_rng(1)
    passed = naive = 0
    for _ in range(60):
        states, rows = smooth_noise(random, 10, 600).T.astype(np.float32), smooth_noise(random, 2, 600)
        found = correlate(states, rows, np.zeros(600, np.int64))
        passed += any(one.significant for one in found)
        # Without the control, as if tokens were independent: 1.96 / √N.
        naive += any(abs(one.coefficients[0]) > 1.96 / math.sqrt(600) for one in found)
    assert passed <= 10  # 3 expected, and neighbouring shifts are not independent
    assert naive > 50


def test_a_unit_that_repeats_its_token_follows_nothing_beyond() -> None:
    random = np.random.default_rng(2)
    ids = random.integers(2, 9, 1000)
    is_space = (ids == 5).astype(float)
    states = np.stack([is_space + 0.1 * random.normal(size=1000), random.normal(size=1000)], 1).astype(np.float32)
    [found] = correlate(states, is_space[None], ids)
    assert found.units[0] == 0
    assert found.significant
    assert abs(found.beyond_token) < 0.01


@pytest.mark.parametrize("tokens", [0, 1, 20])
def test_too_few_tokens_show_nothing(tokens: int) -> None:
    random = np.random.default_rng(3)
    states, rows = random.normal(size=(tokens, 4)).astype(np.float32), random.normal(size=(2, tokens))
    assert correlate(states, rows, np.zeros(tokens, np.int64)) == []


def test_states_that_overflow_are_not_significant() -> None:
    states = np.full((300, 2), np.inf, np.float32)
    [found] = correlate(states, np.arange(300.0)[None], np.zeros(300, np.int64))
    assert (found.coefficients, found.significant) == ((0.0, 0.0), False)


def test_the_passage_shown_is_where_both_change() -> None:
    feature = np.zeros(100)
    feature[60:64] = 1.0
    tokens, _ = passage(feature.astype(np.float32), feature, [2] * 100, 16)
    assert tokens.stop - tokens.start == 8
    assert feature[tokens].sum() == 4
    assert passage(feature, feature, [2] * 100, 999)[0] == slice(0, 100)


# --- context -------------------------------------------------------------------------------------------------


def language_model(**options: Any) -> LanguageModel:
    checkpoint = tiny_checkpoint(**options)
    model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary))
    model.load_weights(checkpoint.weights)
    return model


def test_context_losses_are_those_of_a_model_started_late() -> None:
    checkpoint = tiny_checkpoint(cell="gru", hidden=5)
    text = TokenisedText.of("", TEXT * 2, checkpoint.vocabulary)
    bits, found = context_losses(language_model(cell="gru", hidden=5), [text])
    read = surprisal(checkpoint, TEXT * 2)
    assert bits == pytest.approx(sum(token.bits for token in read) / len(text.text), rel=1e-5)

    def nats(context: list[int], target: int) -> float:
        state = np.zeros((1, 1, 1, 5), np.float32)
        logits = Stepper(checkpoint.configuration, checkpoint.weights, state).read(np.array(context)[:, None])[0]
        return float(np.log(np.exp(logits).sum()) - logits[target])

    ids = [END, *text.ids.tolist(), END]
    assert [(one.first, one.last) for one in found[:3]] == [(1, 1), (2, 2), (3, 4)]
    longest = found[-1].last
    starts = range(1, len(text.ids) + 2 - longest)
    for one in found[:2]:
        excess = [nats(ids[s : s + one.first], ids[s + one.first]) for s in starts]
        excess = [e - nats(ids[: s + one.first], ids[s + one.first]) for e, s in zip(excess, starts, strict=True)]
        characters = sum([*text.lengths, 0][s + one.first - 1] for s in starts)
        assert one.excess == pytest.approx(sum(excess) / characters / math.log(2), abs=1e-4)


def test_a_model_without_memory_gains_nothing_from_context() -> None:
    model = language_model()
    model.weights_by_name["layers.0.recurrent_weight"].zero_()
    model.weights_by_name["layers.0.bias"][3:6] = -1e3  # forget gate
    _, found = context_losses(model, [TokenisedText.of("", TEXT * 2, tiny_checkpoint().vocabulary)])
    assert len(found) > 3
    assert max(abs(one.excess) for one in found) < 1e-6


@pytest.mark.parametrize("count", [1, 3])
def test_texts_of_one_token_have_no_contexts(count: int) -> None:
    text = TokenisedText.of("", "th", tiny_checkpoint().vocabulary)
    bits, found = context_losses(language_model(), [text] * count)
    assert (bits > 0, found) == (True, [])


# --- the command line ----------------------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    path = tmp_path / "<i>hostile.txt"
    path.write_bytes(FILE.encode())
    return path


def test_report_has_units_gates_and_memory(trained: Run, run: Program) -> None:
    ran = run("eval", "--cells", "--split", "train")
    assert (ran.code, ran.err.split(":")[0]) == (0, "a whole text by a unit's state")
    assert re.search(r"read: [\d,]+ tokens of 22 train texts, by 8 units", ran.out)
    assert re.search(r"space +\d +[+-]0\.\d{3} +0\.\d{3}", ran.out)
    assert re.search(r"0 +f +\d+\.\d% +\d+\.\d%", ran.out)
    assert "does not vary in this text:" in ran.out
    assert re.search(r"unit \d: .* \([+-]0\.\d\d\)\n", ran.out)
    assert "3: mean" in ran.out
    value = json.loads(run("eval", "--cells", "--split", "train", "--json").out)
    assert (value["run"], value["split"], value["units"], len(value["texts"])) == (trained.name, "train", 8, 22)
    best = value["features"][0]
    assert best["significant"]
    assert abs(best["best"][0]["correlation"]) > best["chance"]
    assert set(best["best"][0]["gates"]) == {"i", "f", "o"} == {gate["gate"] for gate in value["gates"]}
    for gate in value["gates"]:
        assert len(gate["open_by_unit"]) == 8
        assert gate["open"] == pytest.approx(sum(gate["open_by_unit"]) / 8, abs=1e-4)
    assert [one["first"] for one in value["context"][:3]] == [1, 2, 3]
    unit = best["best"][0]["unit"]
    assert f"--unit {unit}" in run("eval", "--cells", "--split", "train").err or len(value["features"]) > 1


@pytest.mark.usefixtures("trained")
def test_a_short_text_is_too_little_to_tell(hostile: Path, run: Program) -> None:
    ran = run("eval", "--cells", str(hostile))
    assert (ran.code, ran.err) == (0, "")
    assert "too little text to tell a unit from chance: give more of it" in ran.out
    assert json.loads(run("eval", "--cells", str(hostile), "--json").out)["features"] == []


def test_a_checkpoint_file_reports_on_a_text(trained: Run, tales: Path, run: Program) -> None:
    ran = run("eval", "--run", str(trained.best_path), "--cells", str(tales / "00.txt"), "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert "tokens of 1 text, by 8 units" in ran.out


def test_unit_in_a_pipe_has_digits_for_levels(trained: Run, run: Program, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("the king and the hen")
    ran = run("eval", "--unit", "5", str(path))
    title, text, digits, legend = ran.out.splitlines()
    checkpoint = trained.checkpoint()
    trace = trace_unit(checkpoint, TokenisedText.of("", path.read_text(), checkpoint.vocabulary), 0, 5)
    assert title == f"{path}: unit 5, mean {trace.states.mean():+.2f}, standard deviation {trace.states.std():.2f}"
    assert text == "the king and the hen"
    scaled = (trace.states - trace.states.mean()) / trace.states.std()
    levels = "".join(2 * str(view.SCALE.level(float(value))) for value in scaled)
    assert digits == levels.replace("3", " ").rstrip()
    assert legend.startswith("0: <-1.5  1: <-0.75")
    [shown] = json.loads(run("eval", "--unit", "5", str(path), "--json").out)["texts"]
    assert [token["state"] for token in shown["tokens"]] == pytest.approx(trace.states.tolist())
    assert set(shown["tokens"][0]["gates"]) == {"i", "f", "c", "o"}


@pytest.mark.usefixtures("trained")
def test_unit_page_stands_beside_the_surprisal_inert(hostile: Path, run: Program, tmp_path: Path) -> None:
    """Fault 52: markup in a text and in its name has no effect."""
    target = tmp_path / "out.html"
    assert run("eval", "--unit", "3", str(hostile), "--html", str(target)) == (0, "", f"written to {target}\n")
    content = target.read_text(encoding="utf-8")
    page = Page(content)
    assert page.tags == {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "span", "div"}
    assert page.text.count('<script>alert("1")</script> & \\x1b[31m\\u202e\'">{x}\t中↵\n') == 2
    assert "<i>hostile.txt" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]|https?:|url\\(", content)
    assert "default-src 'none'" in content
    assert "prefers-color-scheme: dark" in content
    assert re.fullmatch(r"“th”: state [+-]\d\.\d\d; (\w \S+(, )?){4}", page.tooltips[0])
    assert sum("bits; expected:" in tooltip for tooltip in page.tooltips) == len(page.tooltips) // 2 + 1


@pytest.mark.usefixtures("trained")
def test_report_page_has_the_tables_and_is_inert(tmp_path: Path, tales: Path, run: Program) -> None:
    """Fault 52, likewise."""
    text = tmp_path / "<b>x.txt"
    tale = (tales / "00.txt").read_text()
    text.write_text("".join(f"<script>alert({k})</script> {tale}" for k in range(9)))
    target = tmp_path / "out.html"
    assert run("eval", "--cells", str(text), "--html", str(target), "--quiet") == (0, "", "")
    content = target.read_text(encoding="utf-8")
    page = Page(content)
    assert page.tags == {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "span", "div", "table", "tr", "th", "td",
    }  # fmt: skip
    assert "position in the word" in page.text
    assert "alert(" in page.text
    assert not re.search("https?:|url\\(", content)


@pytest.mark.skipif(executable() is None, reason="no Chromium here")
@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_coloured_pages_are_inert_in_a_browser(run: Program, tmp_path: Path) -> None:
    """Fault 52: nothing runs, nothing is loaded, and nothing is wider than a telephone."""
    attack = "<img src=x onerror=hacked=1><svg/onload=hacked=1><script>hacked=1</script> \"'> "
    text = tmp_path / "<i>x.txt"
    text.write_text(attack * 40)
    target = tmp_path / "out.html"
    with browser() as chromium:
        for options in ["--unit", "3"], ["--cells"], ["--heatmap"]:
            assert run("eval", *options, str(text), "--html", str(target), "--quiet").code == 0
            page = chromium.page()
            page.resize(390, 800, dark=True)
            page.open(target)
            assert "onerror=hacked=1>" in page.evaluate("document.body.textContent")
            assert page.evaluate("document.querySelectorAll('img, svg, i, script').length") == 0
            assert page.evaluate("typeof hacked") == "undefined"
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, options
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(38, 38, 38)"
            assert page.problems == []
            assert [url.split(":")[0] for url in page.requests] == ["file"]


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_report_fits_a_narrow_terminal() -> None:
    ran = on_terminal(*PROGRAM, "eval", "--cells", "--split", "train", "--quiet", columns=40)
    assert ran.code == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", ran.out).splitlines()
    assert max(map(len, lines)) <= 40
    assert any("correlation" in line and "unit" in line for line in lines)
    assert any("context" in line and "bits/char" in line for line in lines)


def test_scale_has_contrast_and_the_mean_stands_apart() -> None:
    for palette in view.SCALE.light, view.SCALE.dark:
        assert len(palette) == len(view.SCALE.labels) == len(view.SCALE.bounds) + 1
        for background, foreground in palette:
            dark, light = sorted([luminance(background), luminance(foreground)])
            assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA
        order = [luminance(background) for background, _ in palette]
        towards, away = order[: view.SCALE.blank + 1], order[view.SCALE.blank :]
        assert towards in (sorted(towards), sorted(towards, reverse=True))
        assert away in (sorted(away), sorted(away, reverse=True))


ALONE = "takes one run and no other measure"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unit", "3"], "--unit needs a text"),
        (["--unit", "8", "FILE"], "--unit '8': the model has no such unit: give 0 to 7"),
        (["--unit", "1:0", "FILE"], "--unit '1:0': the model has no such unit"),
        (["--unit", "x", "FILE"], "--unit 'x'"),
        (["--unit", "-1", "FILE"], "--unit '-1'"),
        (["--unit", "3", "--device", "cpu", "FILE"], "--device has no effect with --unit"),
        (["--cells", "--unit", "3", "FILE"], f"--cells {ALONE}"),
        (["--cells", "--heatmap", "FILE"], f"--cells {ALONE}"),
        (["--cells", "--dynamic"], f"--cells {ALONE}"),
        (["--cells", "--split", "test", "FILE"], "--split has no effect with FILEs"),
        (["--unit", "3", "EMPTY"], "empty.txt has no text"),
        (["--cells", "EMPTY"], "empty.txt has no text"),
        (["--cells", "--html", "gone/x.html"], "cannot write gone/x.html (No such file or directory)"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("trained")
def test_views_of_cells_refuse_conflicting_options(
    options: list[str], message: str, hostile: Path, tmp_path: Path, run: Program
) -> None:
    (tmp_path / "empty.txt").touch()
    files = {"FILE": str(hostile), "EMPTY": str(tmp_path / "empty.txt")}
    ran = run("eval", *(files.get(option, option) for option in options))
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert ran.code == (1 if "cannot" in message else 2)


def test_names_of_features_are_different() -> None:
    assert len({feature.name for feature in features.FEATURES}) == len(features.FEATURES)
