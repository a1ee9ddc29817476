"""`grimmgen generate`: what reaches standard output, what does not, and when."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest

import grimmgen
from grimmgen.checkpoint import Checkpoint
from grimmgen.cli import _run
from grimmgen.configuration import Configuration, weight_shapes
from grimmgen.decoding import Decoding
from grimmgen.generation import Pieces, Telling
from grimmgen.registry import Run
from grimmgen.vocabulary import END, UNKNOWN, Vocabulary
from tests.builders import random_tensors
from tests.program import PROGRAM, Ran, begin, on_terminal, shell
from tests.program import grimmgen as program

Program = Callable[..., Ran]


@pytest.fixture
def endless(tmp_path: Path) -> Callable[[str], str]:
    """The path of a model that tells the bigrams of a text in any order and comes to no end."""

    def make(text: str) -> str:
        configuration = Configuration(hidden=3, min_count=1)
        vocabulary = Vocabulary.build([text], min_count=1)
        weights = random_tensors(weight_shapes(configuration, len(vocabulary)))
        weights["output.bias"][END] = -99.0
        path = tmp_path / "endless.safetensors"
        Checkpoint(configuration, vocabulary, {}, weights).write(path)
        return str(path)

    return make


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_a_random_seed_gives_the_same_bytes_again_in_any_process() -> None:
    first, again, other = (program("generate", "--random-seed", seed) for seed in ("5", "5", "6"))
    assert first == again
    assert first.out != other.out
    assert (first.code, first.err) == (0, "")


@pytest.mark.usefixtures("trained")
def test_without_a_random_seed_every_story_is_another(run: Program) -> None:
    assert len({run("generate").out for _ in range(4)}) > 1


@pytest.mark.usefixtures("trained")
def test_only_the_text_goes_to_standard_output(run: Program) -> None:
    # What is lost with 2>/dev/null is not text.
    options = ["generate", "--seed", "The zebra", "--random-seed", "1", "--length", "30"]
    told = run(*options)
    assert told.err == "warning: the model has never seen 'z' 'b': it reads <unk> there and goes on\n"
    assert run(*options, "--quiet") == (0, told.out, "")
    assert json.loads(run(*options, "--json").out)["text"] + "\n" == told.out
    assert told.out.startswith("the zebra")


def test_json_is_one_document_that_says_how_it_was_told(trained: Run, run: Program) -> None:
    ran = run("generate", "--json", "--seed", "The King", "--length", "20", "--top-k", "2", "--temperature", "0.5")
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    again = run("generate", "--seed", "the king", "--length", "20", "--top-k", "2", "--temperature", "0.5",
                "--random-seed", str(told["decoding"]["random_seed"]))  # fmt: skip
    assert told.pop("text") + "\n" == again.out
    assert told.pop("log_probability") < 0
    assert told.pop("ending") in {"length", "end"}
    decoding = asdict(Decoding(length=20, top_k=2, temperature=0.5, random_seed=told["decoding"]["random_seed"]))
    content = trained.best_path.read_bytes()
    assert told == {
        "run": "sly-fox",
        "checkpoint_sha256": hashlib.sha256(content).hexdigest(),
        "grimmgen": version("grimmgen"),
        "prompt": "the king",
        "decoding": decoding,
    }


@pytest.mark.parametrize(
    "options",
    [
        "--length 90",
        "--seed th --top-p 0.8 --temperature 1.5 --state zeros",
        "--min-p 0.02 --repetition-penalty 1.3 --until forest",
        "--seed King --beam-width 3 --beam-depth 4 --length 61",
        "--max-copy 9 --length 120 --stories 2",
        "--greedy --length 33",
    ],
)
@pytest.mark.usefixtures("trained")
def test_a_story_is_told_again_from_its_record_alone(options: str, run: Program) -> None:
    records = json.loads(run("generate", "--json", *options.split()).out)
    for record in records if isinstance(records, list) else [records]:
        model = grimmgen.load(record["run"])
        assert model.checkpoint.sha256 == record["checkpoint_sha256"]
        decoding = grimmgen.Decoding(**record["decoding"])
        assert model.generate(record["prompt"], **record["decoding"]) == record["text"]
        [again] = model.tell_several(record["prompt"], decoding, 1)
        assert (again.text, again.ending) == (record["text"], record["ending"])
        assert model.log_probability(again) == record["log_probability"]


@pytest.mark.usefixtures("trained")
def test_several_stories_are_told_one_after_the_other_each_as_if_alone(run: Program) -> None:
    options = ["generate", "--seed", "The K", "--length", "90", "--random-seed"]
    alone = [run(*options, seed).out for seed in ("3", "4", "5")]
    assert run(*options, "3", "--stories", "3") == (0, "\n".join(alone), "")
    documents = json.loads(run(*options, "3", "--stories", "3", "--json").out)
    assert [document["text"] + "\n" for document in documents] == alone
    assert [document["decoding"]["random_seed"] for document in documents] == [3, 4, 5]
    assert documents[1] == json.loads(run(*options, "4", "--json").out)
    assert run(*options, "3", "--stories", "1").out == alone[0]


@pytest.mark.parametrize("length", [1, 2, 33])
def test_length_is_in_characters_after_the_prompt(
    length: int, endless: Callable[[str], str], run: Program
) -> None:
    ran = run("generate", "--run", endless("the king"), "--seed", "the", "--length", str(length))
    assert len(ran.out) == len("the") + length + len("\n")


def test_a_prompt_of_odd_length_goes_on_within_its_bigram(endless: Callable[[str], str], run: Program) -> None:
    model = endless("the king and the knave")  # ki, kn: at odd places " k" and "na" only
    told = {run("generate", "--run", model, "--seed", "the k", "--length", "1").out for _ in range(9)}
    assert told == {"the ki\n"}


@pytest.mark.parametrize(
    ("sent", "prompt"),
    [
        (b"the king", "the king"),
        (b"The king\n", "the king"),
        (b"the\r\nking\r\n", "the\nking"),
        (b"", ""),
        (b"\n", ""),
    ],
)
def test_a_prompt_comes_from_a_pipe(sent: bytes, prompt: str, trained: Run) -> None:
    piped = program("generate", "--seed", "-", "--random-seed", "1", stdin=sent)
    assert piped.code == 0
    typed = program("generate", "--seed", prompt, "--random-seed", "1", "--run", trained.name)
    assert (piped.out, piped.err) == (typed.out, typed.err)
    assert piped.out.startswith(prompt)


@pytest.mark.usefixtures("trained")
def test_a_prompt_that_is_not_utf_8_is_refused() -> None:
    ran = program("generate", "--seed", "-", stdin=b"the k\xf6nig")
    assert ran == (2, "", "error: standard input is not UTF-8 (byte 5): convert it first\n")


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("中", "'中'"),
        ("🦊 und Zar", "'🦊' 'z'"),
        ("a\u0301x", "'á'"),
        ("zz" * 9, "'z'"),
        ("\udcff", r"'\udcff'"),
        ("".join(map(chr, range(0x4E00, 0x4E40))), " ".join(repr(chr(c)) for c in range(0x4E00, 0x4E14)) + " …"),
    ],
)
@pytest.mark.usefixtures("trained")
def test_characters_never_seen_are_named_and_the_story_goes_on(prompt: str, named: str, run: Program) -> None:
    # Fault 41.
    ran = run("generate", "--seed", prompt, "--length", "20", "--random-seed", "3", "--top-k", "1")
    assert ran.code == 0
    assert ran.err == f"warning: the model has never seen {named}: it reads <unk> there and goes on\n"
    assert len(ran.out) > len(prompt) + 1


def test_unknown_is_never_told(trained: Run, run: Program) -> None:
    checkpoint = trained.checkpoint()
    # By now as likely as anything else.
    checkpoint.weights["output.bias"][UNKNOWN] = 9.0
    checkpoint.weights["output.bias"][END] = -99.0
    checkpoint.write(trained.best_path)
    told = run("generate", "--length", "2000", "--top-k", "0")
    assert len(told.out) == 2001
    assert "<" not in told.out


def test_control_characters_are_raw_in_a_pipe_and_harmless_on_a_terminal(endless: Callable[[str], str]) -> None:
    # Fault 40.
    wild = "\x1b[2j\x9b31m\u202eab\x07\x08"
    told = ["generate", "--run", endless(wild), "--length", "90", "--random-seed", "1", "--top-k", "0"]
    piped = program(*told)
    assert set(piped.out) == {*wild, "\n"}
    shown = on_terminal(*PROGRAM, *told)
    assert shown.out == piped.out.encode("unicode_escape").decode().replace("\\n", "\n")
    assert json.loads(program(*told, "--json").out)["text"] + "\n" == piped.out


@pytest.mark.usefixtures("trained")
def test_each_piece_has_left_before_the_next_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, arrived = list[str](), list[str]()
    pipe = io.BytesIO()

    def told(telling: Telling) -> Pieces:
        if pieces:
            arrived.append(pipe.getvalue().decode())
        pieces.append("")
        [pieces[-1]] = following = original(telling)
        return following

    original = Telling.__next__
    monkeypatch.setattr(Telling, "__next__", told)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe))
    assert _run(["generate", "--seed", "the king", "--length", "20"]) == 0
    assert len(pieces) > 3
    # The last one asked for was none.
    assert arrived == list(itertools.accumulate(pieces[:-1]))


def test_ctrl_c_keeps_what_there_is(endless: Callable[[str], str]) -> None:
    # Fault 43. A story of a billion characters would never be told to its end.
    with begin("generate", "--run", endless("the king"), "--length", "1000000000") as process:
        assert process.stdout
        assert process.stderr
        first = process.stdout.read(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert first + rest
        assert set((first + rest).decode()) <= set("the king\n")
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 130


@pytest.mark.parametrize("part", ["head -c 1", "head -1", "true"])
def test_a_reader_who_has_enough_is_no_error(part: str, endless: Callable[[str], str]) -> None:  # fault 39
    ran = shell(f"grimmgen generate --run {endless('the king.' + chr(10) * 2)} --length 1000000000 | {part}")
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize("form", ["", "--json"])
@pytest.mark.usefixtures("trained")
def test_a_full_disk_is_one_line(form: str) -> None:
    ran = shell(f"grimmgen generate {form} > /dev/full")
    message = "error: the system refuses (No space left on device): check the path and the disk\n"
    assert ran == (1, "", message)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--length", "0", "--length 0 is out of range: give 1 to 1000000000 characters"),
        ("--length", "-1", "--length -1 is out of range: give 1 to 1000000000 characters"),
        ("--top-k", "-1", "--top-k -1 is out of range: give 1 or more, or 0 for all"),
        ("--top-k", "9999", "--top-k 9999 is more than the 76 n-grams of the vocabulary: give less, or 0 for all"),
        ("--temperature", "nan", "--temperature nan is out of range: give 0 to 1000000"),  # fault 42
        ("--temperature", "-1", "--temperature -1 is out of range: give 0 to 1000000"),
        ("--stories", "0", "--stories 0 is out of range: give 1 to 1024"),
        ("--random-seed", str(2**63), f"--random-seed {2**63} is out of range: give 0 to 2^63 - 1"),
    ],
)
@pytest.mark.usefixtures("trained")
def test_values_out_of_range_are_refused_by_name(option: str, value: str, message: str, run: Program) -> None:
    assert run("generate", option, value) == (2, "", f"error: {message}\n")


@pytest.mark.usefixtures("trained")
def test_the_coldest_temperatures_always_tell_the_best(run: Program) -> None:  # fault 42
    told = {run("generate", "--temperature", t, "--state", "zeros").out for t in ("0", "1e-30", "5e-324")}
    assert len(told) == 1


@pytest.mark.usefixtures("trained")
def test_options_may_be_variables(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_GENERATE_RANDOM_SEED", "4")
    monkeypatch.setenv("GRIMMGEN_GENERATE_LENGTH", "9")
    monkeypatch.setenv("GRIMMGEN_GENERATE_JSON", "1")
    told = json.loads(run("generate", "--length", "8").out)
    assert (told["decoding"]["random_seed"], told["decoding"]["length"]) == (4, 8)


@pytest.mark.usefixtures("trained")
def test_on_a_terminal_the_random_seed_to_tell_it_again_is_shown() -> None:
    shown = on_terminal(*PROGRAM, "generate", "--length", "10")
    assert "sly-fox tells the same again with: " in shown.out
    assert "--random-seed" in shown.out
    shown = on_terminal(*PROGRAM, "generate", "--length", "10", "--stories", "2")
    assert re.search(r"--random-seed \d+ --stories 2", shown.out)
