"""`grimmgen generate`: standard output, standard error, exit codes and options."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import platform
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import grimmgen
from grimmgen.cli import _run
from grimmgen.configuration import Configuration
from grimmgen.evaluation.novelty import CopyIndex
from grimmgen.network import backends
from grimmgen.network.shapes import weight_shapes
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import Run
from grimmgen.sampling.generator import GenerationStream, Pieces
from grimmgen.sampling.options import LONGEST, SamplingOptions
from grimmgen.text.ngrams import NgramVocabulary
from grimmgen.text.vocabulary import END, UNKNOWN
from tests.builders import random_tensors
from tests.program import PROGRAM, Ran, begin, on_terminal, shell
from tests.program import grimmgen as program

Program = Callable[..., Ran]


def is_one_line(text: str, beginning: str, *parts: str) -> bool:
    """Whether a message on standard error is one line that has these parts."""
    return text.startswith(beginning) and text.count("\n") == 1 and all(part in text for part in parts)


@pytest.fixture
def endless(tmp_path: Path) -> Callable[[str], str]:
    """The path of a model that generates the bigrams of a text in random order and never ends."""

    def make(text: str) -> str:
        configuration = Configuration(hidden=3, min_count=1)
        vocabulary = NgramVocabulary.build([text], min_count=1)
        weights = random_tensors(weight_shapes(configuration, len(vocabulary)))
        weights["output.bias"][END] = -99.0
        path = tmp_path / "endless.safetensors"
        Checkpoint(configuration, vocabulary, {}, weights).write(path)
        return str(path)

    return make


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_a_random_seed_gives_the_same_bytes_in_any_process(run: Program) -> None:
    first, again = (program("generate", "--random-seed", "5") for _ in range(2))
    assert first == again
    assert first.out != run("generate", "--random-seed", "9").out
    assert (first.code, first.err) == (0, "")


@pytest.mark.usefixtures("trained")
def test_without_a_random_seed_texts_differ(run: Program) -> None:
    assert len({run("generate").out for _ in range(4)}) > 1


@pytest.mark.usefixtures("trained")
def test_only_the_text_goes_to_standard_output(run: Program) -> None:
    # 2>/dev/null must lose no text.
    options = ["generate", "--seed", "The zebra", "--random-seed", "1", "--length", "30"]
    ran = run(*options)
    assert is_one_line(ran.err, "warning: ", "'z' 'b'")
    assert run(*options, "--quiet") == (0, ran.out, "")
    assert json.loads(run(*options, "--json").out)["text"] + "\n" == ran.out
    assert ran.out.startswith("the zebra")


def test_json_records_text_model_and_options(trained: Run, run: Program) -> None:
    ran = run("generate", "--json", "--seed", "The King", "--length", "20", "--top-k", "2", "--temperature", "0.5")
    assert (ran.code, ran.err) == (0, "")
    record = json.loads(ran.out)
    again = run("generate", "--seed", "the king", "--length", "20", "--top-k", "2", "--temperature", "0.5",
                "--random-seed", str(record["decoding"]["random_seed"]))  # fmt: skip
    assert record.pop("text") + "\n" == again.out
    assert record.pop("log_probability") < 0
    assert record.pop("ending") in {"length", "end"}
    # The lexicon is a default of the model, which a choice of candidates leaves as it is.
    options = SamplingOptions(
        length=20, top_k=2, temperature=0.5, lexicon=True, random_seed=record["decoding"]["random_seed"]
    )
    decoding = asdict(options)
    content = trained.best_path.read_bytes()
    assert record == {
        "run": "sly-fox",
        "checkpoint_sha256": hashlib.sha256(content).hexdigest(),
        "grimmgen": version("grimmgen"),
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "backend": backends.stepper_kernel("lstm"),
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
def test_a_text_is_reproducible_from_its_json_record(options: str, run: Program) -> None:
    records = json.loads(run("generate", "--json", *options.split()).out)
    for record in records if isinstance(records, list) else [records]:
        model = grimmgen.load(record["run"])
        assert model.checkpoint.sha256 == record["checkpoint_sha256"]
        decoding = grimmgen.SamplingOptions(**record["decoding"])
        assert model.generate(record["prompt"], **record["decoding"]) == record["text"]
        [again] = model.generate_batch(record["prompt"], decoding, 1)
        assert (again.text, again.ending) == (record["text"], record["ending"])
        assert model.log_probability(again) == record["log_probability"]


@pytest.mark.usefixtures("trained")
def test_stories_equal_single_runs_with_consecutive_seeds(run: Program) -> None:
    options = ["generate", "--seed", "The K", "--length", "90", "--random-seed"]
    alone = [run(*options, seed).out for seed in ("3", "4", "5")]
    assert run(*options, "3", "--stories", "3") == (0, "\n".join(alone), "")
    documents = json.loads(run(*options, "3", "--stories", "3", "--json").out)
    assert [document["text"] + "\n" for document in documents] == alone
    assert [document["decoding"]["random_seed"] for document in documents] == [3, 4, 5]
    assert documents[1] == json.loads(run(*options, "4", "--json").out)
    assert run(*options, "3", "--stories", "1").out == alone[0]


@pytest.mark.usefixtures("trained")
def test_each_story_begins_with_a_title_of_its_own(run: Program) -> None:
    command = ["generate", "--title", "--length", "40", "--random-seed", "5", "the king"]
    stories = json.loads(run(*command, "--stories", "3", "--json").out)
    titles = [story["text"].split("\n")[0] for story in stories]
    assert len({*titles}) == 3
    assert all(titles)
    for title, story in zip(titles, stories, strict=True):
        assert story["prompt"] == f"{title}\nthe king"
        assert story["text"].startswith(f"{title}\nthe king")
    assert run(*command, "--quiet").out == stories[0]["text"] + "\n"
    ran = run(*command, "--run", "grimm")  # reads line ends as spaces
    assert (ran.code, ran.out) == (2, "")
    assert "knows no titles" in ran.err
    assert run(*command, "--stories", "3", "--novel").code == 2


@pytest.mark.parametrize("length", [1, 2, 33])
def test_length_is_in_characters_after_the_prompt(
    length: int, endless: Callable[[str], str], run: Program
) -> None:
    ran = run("generate", "--run", endless("the king"), "--seed", "the", "--length", str(length))
    assert len(ran.out) == len("the") + length + len("\n")


@pytest.mark.slow
def test_names_of_a_list_are_one_a_line_unique_and_novel(tmp_path: Path, run: Program) -> None:
    names = tmp_path / "names.txt"
    names.write_text(
        "".join(f"{a}{b}\n" for a in ("an", "be", "lo", "mi") for b in ("na", "ra", "lo", "tte", "n"))
    )
    options = "--hidden 8 --batch-size 4 --unroll 10 --lr 0.01 --min-count 1 --epochs 4 --ngram 1".split()
    assert run("train", "--corpus", str(names), "--documents", "line", *options).code == 0
    command = "generate --stories 12 --unique --novel --top-k 0 --random-seed 1".split()
    ran = run(*command)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert len(lines) == len(set(lines)) == 12
    assert not set(lines) & set(names.read_text().splitlines())
    # Each is the one that its seed gives.
    for record, line in zip(json.loads(run(*command, "--json").out), lines, strict=True):
        again = run("generate", "--top-k", "0", "--random-seed", str(record["decoding"]["random_seed"]))
        assert again.out == record["text"] + "\n" == line + "\n"
    few = run("generate", "--stories", "12", "--unique", "--greedy", "--state", "zeros", "--random-seed", "1")
    assert few.code == 1
    assert len(few.out.splitlines()) == 1
    assert is_one_line(few.err, "error: found only 1 of 12 different stories", "--temperature")


def test_unique_needs_several_stories(run: Program) -> None:
    assert run("generate", "--unique").code == 2


def test_a_prompt_of_odd_length_continues_its_bigram(endless: Callable[[str], str], run: Program) -> None:
    model = endless("the king and the knave")  # ki, kn: at odd places " k" and "na" only
    outputs = {run("generate", "--run", model, "--seed", "the k", "--length", "1").out for _ in range(9)}
    assert outputs == {"the ki\n"}


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
def test_a_prompt_comes_from_a_pipe(sent: bytes, prompt: str, trained: Run, run: Program) -> None:
    piped = run("generate", "--seed", "-", "--random-seed", "1", stdin=sent)
    assert piped.code == 0
    typed = run("generate", "--seed", prompt, "--random-seed", "1", "--run", trained.name)
    assert (piped.out, piped.err) == (typed.out, typed.err)
    assert piped.out.startswith(prompt)


@pytest.mark.usefixtures("trained")
def test_a_prompt_that_is_not_utf_8_is_refused(run: Program) -> None:
    ran = run("generate", "--seed", "-", stdin=b"the k\xf6nig")
    assert (ran.code, ran.out) == (2, "")
    assert is_one_line(ran.err, "error: ", "standard input is not UTF-8 (byte 5)")


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
def test_unknown_characters_are_named_in_a_warning(prompt: str, named: str, run: Program) -> None:
    # Fault 41.
    ran = run("generate", "--seed", prompt, "--length", "20", "--random-seed", "3", "--top-k", "1")
    assert ran.code == 0
    assert is_one_line(ran.err, "warning: ", named)
    assert len(ran.out) > len(prompt) + 1


def test_unk_is_never_generated(trained: Run, run: Program) -> None:
    checkpoint = trained.checkpoint()
    # More probable than anything else.
    checkpoint.weights["output.bias"][UNKNOWN] = 9.0
    checkpoint.weights["output.bias"][END] = -99.0
    checkpoint.write(trained.best_path)
    ran = run("generate", "--length", "2000", "--top-k", "0")
    assert len(ran.out) == 2001
    assert "<" not in ran.out


def test_control_characters_are_escaped_only_on_a_terminal(endless: Callable[[str], str], run: Program) -> None:
    # Fault 40.
    wild = "\x1b[2j\x9b31m\u202eab\x07\x08"
    command = ["generate", "--run", endless(wild), "--length", "90", "--random-seed", "1", "--top-k", "0"]
    piped = run(*command)
    assert set(piped.out) == {*wild, "\n"}
    shown = on_terminal(*PROGRAM, *command)
    assert shown.out == piped.out.encode("unicode_escape").decode().replace("\\n", "\n")
    assert json.loads(run(*command, "--json").out)["text"] + "\n" == piped.out


@pytest.mark.usefixtures("trained")
def test_each_piece_is_flushed_before_the_next_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, arrived = list[str](), list[str]()
    pipe = io.BytesIO()

    def recorded(stream: GenerationStream) -> Pieces:
        if pieces:
            arrived.append(pipe.getvalue().decode())
        pieces.append("")
        [pieces[-1]] = piece = original(stream)
        return piece

    original = GenerationStream.__next__
    monkeypatch.setattr(GenerationStream, "__next__", recorded)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe))
    assert _run(["generate", "--seed", "the king", "--length", "20"]) == 0
    assert len(pieces) > 3
    # The last call found no further piece.
    assert arrived == list(itertools.accumulate(pieces[:-1]))


def test_ctrl_c_keeps_the_text_so_far(endless: Callable[[str], str]) -> None:
    # Fault 43. A text of a billion characters would not be complete in time.
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


@pytest.mark.parametrize("part", ["head -c 1", "true"])
def test_a_closed_pipe_is_no_error(part: str, endless: Callable[[str], str]) -> None:  # fault 39
    ran = shell(f"grimmgen generate --run {endless('the king.' + chr(10) * 2)} --length 1000000000 | {part}")
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize("form", ["", "--json"])
@pytest.mark.usefixtures("trained")
def test_a_full_disk_is_a_one_line_error(form: str) -> None:
    ran = shell(f"grimmgen generate {form} > /dev/full")
    assert (ran.code, ran.out) == (1, "")
    assert is_one_line(ran.err, "error: ", "No space left on device")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--length", "0", "out of range: give 1 to 1000000000"),
        ("--length", "-1", "out of range: give 1 to 1000000000"),
        ("--top-k", "-1", "out of range: give "),
        ("--top-k", "9999", "more than the 76 tokens of the vocabulary"),
        ("--temperature", "nan", "out of range: give 0 to 1000000"),  # fault 42
        ("--temperature", "-1", "out of range: give 0 to 1000000"),
        ("--stories", "0", "out of range: give 1 to 1024"),
        ("--random-seed", str(2**63), "out of range: give 0 to "),
    ],
)
@pytest.mark.usefixtures("trained")
def test_values_out_of_range_are_refused_by_name(option: str, value: str, message: str, run: Program) -> None:
    ran = run("generate", option, value)
    assert (ran.code, ran.out) == (2, "")
    assert is_one_line(ran.err, f"error: {option} {value} is {message}")


@pytest.mark.usefixtures("trained")
def test_the_lowest_temperatures_are_greedy(run: Program) -> None:  # fault 42
    outputs = {run("generate", "--temperature", t, "--state", "zeros").out for t in ("0", "1e-30", "5e-324")}
    assert len(outputs) == 1


@pytest.mark.usefixtures("trained")
def test_options_can_be_environment_variables(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_GENERATE_RANDOM_SEED", "4")
    monkeypatch.setenv("GRIMMGEN_GENERATE_LENGTH", "9")
    monkeypatch.setenv("GRIMMGEN_GENERATE_JSON", "1")
    record = json.loads(run("generate", "--length", "8").out)
    assert (record["decoding"]["random_seed"], record["decoding"]["length"]) == (4, 8)


@pytest.mark.usefixtures("trained")
def test_a_terminal_shows_how_to_reproduce_the_text() -> None:
    shown = on_terminal(*PROGRAM, "generate", "--length", "10")
    assert re.search(r"Reproduce with: .*--run sly-fox --random-seed \d+", shown.out)
    shown = on_terminal(*PROGRAM, "generate", "--length", "10", "--stories", "2")
    assert re.search(r"--random-seed \d+ --stories 2", shown.out)


# --- sampling options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        "--top-k 9",
        "--top-p 0.5",
        "--min-p 0.4",
        "--temperature 3",
        "--greedy",
        "--repetition-penalty 5",
        "--beam-width 4",
        "--max-copy 6",
        "--no-lexicon",
        "--until e",
        "--state zeros",
    ],
)
@pytest.mark.usefixtures("trained")
def test_every_option_changes_the_text(option: str, run: Program) -> None:
    plain = ["generate", "--length", "300", "--random-seed", "4"]
    ran = run(*plain, *option.split())
    assert (ran.code, ran.err) == (0, "")
    assert ran.out != run(*plain).out
    assert ran == run(*plain, *option.split())


@pytest.mark.usefixtures("trained")
def test_beam_depth_changes_the_text(run: Program) -> None:
    plain = ["generate", "--length", "300", "--random-seed", "4", "--beam-width", "4"]
    assert run(*plain, "--beam-depth", "2").out != run(*plain).out == run(*plain, "--beam-depth", "5").out


def test_max_copy_uses_the_training_documents_of_the_run(trained: Run, run: Program) -> None:
    index = CopyIndex.build((story.name, story.read().lower()) for story in trained.split().parts["train"])
    for limit in (4, 6):
        ran = run("generate", "--max-copy", str(limit), "--length", "400", "--random-seed", "1")
        lengths, _ = index.longest_at_each(ran.out[:-1])
        assert 3 <= lengths.max() <= limit
    free, _ = index.longest_at_each(run("generate", "--length", "400", "--random-seed", "1").out[:-1])
    assert free.max() > 6
    ran = run("generate", "--run", str(trained.best_path), "--max-copy", "8")
    assert (ran.code, ran.out) == (2, "")
    assert is_one_line(ran.err, f"error: {trained.best_path} does not include its training stories: give --run")


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ("--greedy --top-p 0.5", "leave out --top-p"),
        ("--beam-width 3 --top-k 2", "leave out --top-k"),
        ("--beam-depth 3", "give --beam-width"),
        ("--seed a --seed-file b", "give one of them"),
        ("--lines --json", "leave out --lines"),
    ],
)
@pytest.mark.usefixtures("trained")
def test_conflicting_options_are_refused_in_one_line(options: str, remedy: str, run: Program) -> None:
    ran = run("generate", "--random-seed", "1", *options.split())
    assert (ran.code, ran.out) == (2, "")
    assert is_one_line(ran.err, "error: ", options.split()[0], remedy)


@pytest.mark.usefixtures("trained")
def test_until_paragraph_is_accepted(run: Program) -> None:
    assert run("generate", "--random-seed", "1", "--until", "paragraph").code == 0


def test_a_text_without_an_end_is_cut_with_a_note(endless: Callable[[str], str], run: Program) -> None:
    ran = run("generate", "--run", endless("the king"), "--until", "end")
    assert (ran.code, len(ran.out)) == (0, LONGEST + 1)
    assert is_one_line(ran.err, f"no end within {LONGEST:,} characters", "--length")
    assert run("generate", "--run", endless("the king"), "--until", "end", "--quiet").err == ""


def test_a_story_is_about_a_page_by_default(endless: Callable[[str], str], run: Program) -> None:
    ran = run("generate", "--run", endless("he went. "), "--random-seed", "1")
    assert 800 <= len(ran.out) <= 1000
    assert ran.out.endswith(".\n")
    ran = run("generate", "--run", endless("the king"), "--random-seed", "1")
    assert (len(ran.out), ran.err) == (1601, "")


@pytest.mark.usefixtures("trained")
def test_a_trained_run_has_the_first_ngrams_of_documents(run: Program) -> None:
    outputs = {run("generate", "--top-k", "0", "--length", "2").out for _ in range(9)}
    assert outputs == {"th\n"}


# --- prompts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "unknown"),
    [
        ("", ""),
        ("t", ""),
        ("the king", ""),
        (
            "\u4e2d\u6587",
            "'\u4e2d' '\u6587'",
        ),
        ("\U0001f98a", "'\U0001f98a'"),
        ("thrk", "'rk'"),
        (
            "zzrk",
            "characters 'z', n-grams 'rk'",
        ),
        ("The king " * (2**20 // 9), ""),
    ],
    ids=lambda value: repr(value[:9]),
)
@pytest.mark.usefixtures("trained")
def test_prompts_from_a_pipe_and_from_a_file_are_equal(
    sent: str, unknown: str, tmp_path: Path, run: Program
) -> None:
    # Fault 41.
    path = tmp_path / "prompt.txt"
    path.write_bytes(sent.encode() + b"\r\n")
    options = ["generate", "--length", "30", "--random-seed", "1"]
    # Only a long one does not fit into a pipe at once.
    piped = (program if len(sent) > 1000 else run)(*options, "--seed", "-", stdin=sent.encode() + b"\n")
    from_file = run(*options, "--seed-file", str(path))
    assert piped == from_file
    assert piped.code == 0
    assert piped.out.startswith(sent.lower())
    assert len(piped.out) == len(sent) + 31
    # A megabyte of repeated sentences is split anywhere, into n-grams some of which are unknown.
    assert is_one_line(piped.err, "warning: ", unknown) if unknown else not piped.err or len(sent) > 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read {} (No such file or directory): check the path"),
        (b"the k\xf6nig", "{} is not UTF-8 (byte 5): convert it, as with iconv -f windows-1252 -t utf-8"),
        (b"\x89PNG\r\n\x1a\n", "{} is a PNG image: give a text file"),
        (b"a" * (2**20 + 1), "{} is longer than 1 MB: give the last part of it"),
    ],
)
@pytest.mark.usefixtures("trained")
def test_an_invalid_prompt_file_is_refused(
    content: bytes | None, message: str, tmp_path: Path, run: Program
) -> None:
    path = tmp_path / "prompt.txt"
    if content is not None:
        path.write_bytes(content)
    ran = run("generate", "--seed-file", str(path))
    assert (ran.out, ran.err) == ("", f"error: {message.format(path)}\n")
    assert ran.code in {1, 2}


# --- on a terminal -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 20])
@pytest.mark.usefixtures("trained")
def test_lines_wraps_between_words_only_on_a_terminal(columns: int, run: Program) -> None:
    # Of words that are not long.
    command = ["generate", "--length", "600", "--random-seed", "1", "--top-k", "3", "--no-lexicon"]
    raw = run(*command, "--lines").out
    assert raw == run(*command).out
    shown = on_terminal(*PROGRAM, *command, "--lines", columns=columns).out
    assert shown.split() == raw.split()
    lines = shown.split("\n")
    assert max(map(len, lines)) < columns
    # Each line has as many words as fit.
    joined = [(a, b) for a, b in itertools.pairwise(lines) if a and b]
    assert sum(len(a) + len(b.split()[0]) + 1 >= columns - 1 for a, b in joined) >= len(joined) // 2
