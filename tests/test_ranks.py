"""Several processes that train one run: what each reads, that they learn what one learns, and end together."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from grimmgen.cli import _run
from grimmgen.configuration import Configuration, DropoutMode
from grimmgen.errors import UsageError
from grimmgen.evaluation.static import encode_for_evaluation, evaluate
from grimmgen.network.model import LanguageModel, State
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.events import Evaluated, Stepped
from grimmgen.text.batches import Windows, epoch
from grimmgen.text.corpus import open_corpus
from grimmgen.training import distributed as ranks_module
from grimmgen.training.distributed import ALONE, Ranks, joined
from grimmgen.training.session import Training
from tests.builders import NETWORKS, TEXT, tiny_configuration, tiny_vocabulary
from tests.program import Ran

_PATIENCE = 300.0


def torchrun(*command: str) -> subprocess.Popen[bytes]:
    """Let two processes of this command run beside the test."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.Popen([*launcher, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class Part(Ranks):
    """One of several, that hears nothing of the others."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def parts(size: int) -> list[Ranks]:
    return [Part(rank, size) for rank in range(size)]


# --- what each of them reads -------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "size"), [(1, 1), (9, 1), (8, 2), (9, 2), (9, 4), (7, 7)])
def test_every_row_is_one_ranks_and_shares_differ_by_one_at_most(batch_size: int, size: int) -> None:
    own = [part.rows(batch_size) for part in parts(size)]
    assert [row for rows in own for row in range(batch_size)[rows]] == list(range(batch_size))
    shares = [rows.stop - rows.start for rows in own]
    assert max(shares) - min(shares) <= 1


def test_fewer_rows_than_ranks_are_refused() -> None:
    message = "--batch-size 3 is less than a row for each of 4 processes: give more rows, or start fewer"
    with pytest.raises(UsageError, match=message):
        Part(0, 4).rows(3)


@pytest.mark.parametrize(("ngrams", "rows"), [(50, 7), (50, 4), (9, 8), (3, 7)])
def test_the_ranks_windows_side_by_side_are_those_of_one(ngrams: int, rows: int) -> None:
    # With rows that end early, and some that are empty.
    stories = [[np.arange(2, 2 + n, dtype=np.uint16)] for n in (ngrams, 1, 5)]
    whole = epoch(stories, rows, 4, 7, 0)
    shares = [epoch(stories, rows, 4, 7, 0, part.rows(rows)) for part in parts(3)]
    assert isinstance(whole, Windows)
    for number, window in enumerate(whole):
        for name in ("inputs", "targets", "starts"):
            together = np.concatenate([getattr(share[number], name) for share in shares], axis=1)
            assert np.array_equal(together, getattr(window, name))
        assert {share.predictions(number) for share in [whole, *shares]} == {window.predictions}
    assert {len(share) for share in shares} == {len(whole)}


MODES = [*zip(NETWORKS, itertools.cycle(get_args(DropoutMode)), strict=False)]
MODES += [(network, mode) for network in ("lstm1", "lstm2-tied") for mode in get_args(DropoutMode)]


@pytest.mark.parametrize(("network", "mode"), MODES)
def test_the_weighted_mean_of_the_ranks_gradients_is_that_of_one(network: str, mode: DropoutMode) -> None:
    options: dict[str, Any] = {**NETWORKS[network], "dropout": 0.4, "dropout_mode": mode, "weight_drop": 0.3}
    options |= {"input_dropout": 0.3} if "embedding" in options else {}
    configuration = tiny_configuration(batch_size=5, **options)
    vocabulary = tiny_vocabulary(configuration)
    model = LanguageModel(configuration, len(vocabulary))
    model.initialise()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10.0)
    stories = [[vocabulary.encode(TEXT)], [vocabulary.encode(TEXT[::-1])]]
    draw = torch.Generator().manual_seed(3)
    carried: State = tuple(torch.randn(2, configuration.layers, 5, 3, generator=draw))

    def learnt(own: slice) -> tuple[float, State, list[torch.Tensor]]:
        window = epoch(stories, 5, 4, 0, 0, own)[0]
        model.zero_grad()
        state = tuple(part[:, own] for part in carried)
        loss, after = model.loss(window, state, torch.Generator().manual_seed(7), "fp32", own)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item(), after, [w.grad.clone() for w in model.parameters() if w.grad is not None]

    mean, state, gradients = learnt(slice(0, 5))
    own = [part.rows(5) for part in parts(2)]
    learnt_apart = [learnt(rows) for rows in own]
    weights = [(rows.stop - rows.start) / 5 for rows in own]
    assert sum(w * loss for w, (loss, _, _) in zip(weights, learnt_apart, strict=True)) == pytest.approx(mean)
    for which in (0, 1):
        apart = torch.cat([after[which] for _, after, _ in learnt_apart], dim=1)
        torch.testing.assert_close(apart, state[which])
    for number, right in enumerate(gradients):
        apart = sum(
            (w * given[number] for w, (_, _, given) in zip(weights, learnt_apart, strict=True)),
            torch.zeros_like(right),
        )
        torch.testing.assert_close(apart, right, rtol=1e-4, atol=1e-6)
    # And the masks were at work: without its share's the second rank learns something else.
    other, _, _ = learnt(own[0])
    assert other == learnt_apart[0][0] != learnt_apart[1][0]


def test_judging_is_shared_and_nothing_is_left_out() -> None:
    configuration = tiny_configuration()
    vocabulary = tiny_vocabulary(configuration)
    model = LanguageModel(configuration, len(vocabulary))
    model.initialise()
    stories = encode_for_evaluation([(str(n), TEXT[n:]) for n in range(5)], vocabulary)
    whole = evaluate(model, stories)
    spelt = [story.spelling for story in stories]
    apart = [[score.nats for score in evaluate(model, stories, (part.rank, part.size)).documents] for part in parts(7)]
    read = np.array(apart) - spelt
    assert (np.count_nonzero(read, axis=0) == 1).all()
    assert read.sum(axis=0) + spelt == pytest.approx([score.nats for score in whole.documents])


# --- how they find each other ------------------------------------------------------------------------------


def test_without_torchrun_there_is_one() -> None:
    with joined() as ranks:
        assert ranks is ALONE


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"RANK": "0"},
            "RANK is set, but not WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT: start with"
            " torchrun, or unset it",
        ),
        (
            {
                "RANK": "1",
                "WORLD_SIZE": "2",
                "LOCAL_RANK": "1",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "localhost",
            },
            "RANK and WORLD_SIZE are set, but not MASTER_PORT: start with torchrun, or unset it",
        ),
        ({"RANK": "-1"}, "RANK='-1' is no number: start with torchrun, or unset it"),
        ({"RANK": "2"}, "RANK and WORLD_SIZE contradict each other: start with torchrun, or unset them"),
        ({"MASTER_PORT": "no"}, "process 0 of 2 does not reach the others ("),
    ],
)
def test_half_of_what_torchrun_sets_is_one_line(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
    }
    whole["MASTER_PORT"] = "1"
    half = len(variables) > 1 or message.startswith("RANK is set")
    for name, value in (variables if half else whole | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks_module, "_joining", False)
    assert _run(["train", "--corpus", "sampler"]) == (1 if "reach" in message else 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_of_a_wrong_option_one_process_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(ranks_module, "_joining", False)
    told = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        for option in ("--hidden=0", "--hiden=3"):
            assert _run(["train", option]) == 2
        told.append(capsys.readouterr().err.count("error: "))
    assert told == [2, 0]


# --- that they learn what one learns -----------------------------------------------------------------------


_TOGETHER = """
import sys, traceback
from grimmgen.training.distributed import end, joined
try:
    with joined() as ranks:
{code}
except SystemExit as leaving:
    end(leaving.code)
except Exception:
    traceback.print_exc()
    end(1)
"""


def together(code: str, *arguments: str, size: int = 2) -> list[Ran]:
    """Run this as each of several ranks, `ranks` among its names; without torchrun, which takes its time.

    In an argument RANK stands for the number of each.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    program = _TOGETHER.format(code=textwrap.indent(textwrap.dedent(code), 8 * " "))
    variables = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "localhost"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, *(argument.replace("RANK", str(rank)) for argument in arguments)],
            env={**os.environ, **variables, "MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]
    outputs = [process.communicate(timeout=_PATIENCE) for process in processes]
    return [
        Ran(process.returncode, out.decode(), err.decode())
        for process, (out, err) in zip(processes, outputs, strict=True)
    ]


# Rows that two do not divide, and nothing rounded more than need be.
OPTIONS: dict[str, Any] = {"hidden": 8, "batch_size": 5, "unroll": 10, "min_count": 1, "epochs": 2, "dropout": 0.3}
OPTIONS |= {"learning_rate": 0.01, "precision": "fp32", "layers": 2, "phases": True, "decay_patience": 1}
_TRAIN = """
    import json
    from grimmgen.runs import registry
    from grimmgen.configuration import Configuration
    from grimmgen.text.corpus import open_corpus
    from grimmgen.runs.events import Stepped, event_to_json
    from grimmgen.training.session import Training
    corpus, options, name, begin, stop = json.loads(sys.argv[1])
    if begin:
        training = Training.begin(open_corpus(corpus), Configuration(**options), run=name, ranks=ranks)
    else:
        training = Training.resume(registry.find(name), ranks=ranks)
    for event in training.events():
        print(json.dumps(event_to_json(event)))
        # Asked of one, all stop.
        if isinstance(event, Stepped) and event.step == stop and ranks.rank == ranks.size - 1:
            training.stop()
"""


# Takes every text for a large one, and tells who encodes it.
_LARGE = """
    import json
    from grimmgen.text import encoding, id_cache
    write, encoding.IN_MEMORY = id_cache.write, 1
    def told(*given):
        print(json.dumps({"event": "encoded"}))
        write(*given)
    id_cache.write = told
"""


def trained_together(
    tales: Path, name: str, begin: bool = True, stop: int = 0, before: str = ""
) -> list[list[dict[str, Any]]]:
    """The events of each of two ranks."""
    ran = together(before + _TRAIN, json.dumps([str(tales), OPTIONS, name, begin, stop]))
    assert [(one.code, one.err) for one in ran] == [(0, "")] * 2
    return [[json.loads(line) for line in one.out.splitlines()] for one in ran]


def contents(name: str) -> dict[str, Any]:
    checkpoint = Checkpoint.read(registry.find(name).last_path)
    progress = {k: v for k, v in (checkpoint.progress or {}).items() if k != "seconds"}
    return {"progress": progress} | checkpoint.weights | checkpoint.training_tensors


def same_to_the_bit(one: str, other: str) -> bool:
    ours, theirs = contents(one), contents(other)
    return ours.pop("progress") == theirs.pop("progress") and all(
        ours[name].tobytes() == theirs[name].tobytes() for name in ours
    )


def close(one: str, other: str) -> bool:
    ours, theirs = contents(one), contents(other)
    counts = [{k: v for k, v in c.pop("progress").items() if isinstance(v, int)} for c in (ours, theirs)]
    return counts[0] == counts[1] and all(
        np.allclose(ours[name], theirs[name], rtol=1e-2, atol=1e-3) for name in ours
    )


@pytest.fixture(scope="module")
def two(tales: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A home with a run, `two`, trained by two ranks, and its events."""
    directory = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRIMMGEN_HOME", str(directory))
        first, second = trained_together(tales, "two")
    # Of the same run, whatever the clocks say; one of them saves.
    for event in (*first, *second):
        for name in ("seconds", "speed", *(["best"] if event["event"] == "saved" else [])):
            event.pop(name, None)
    assert first == second
    return directory, first


@pytest.mark.slow
def test_two_learn_what_one_learns_to_rounding(
    two: tuple[Path, list[dict[str, Any]]], tales: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, events = two
    monkeypatch.setenv("GRIMMGEN_HOME", str(directory))
    alone = list(Training.begin(open_corpus(str(tales)), Configuration(**OPTIONS), run="one").events())
    for kind, name, tolerance in ((Stepped, "stepped", 1e-4), (Evaluated, "evaluated", 1e-3)):
        ours = [event["perplexity"] for event in events if event["event"] == name]
        assert ours == pytest.approx([e.perplexity for e in alone if isinstance(e, kind)], rel=tolerance)
    assert close("one", "two")
    assert not same_to_the_bit("one", "two")  # or nothing was shared
    run = registry.find("two")
    assert sorted(path.name for path in run.path.iterdir()) == [
        path.name for path in sorted(registry.find("one").path.iterdir())
    ]
    assert [event["event"] for event in run.log()] == ["started", "evaluated", "evaluated", "finished"]
    assert run.log()[0]["device"] == "2 × cpu"


@pytest.mark.slow
def test_a_run_goes_on_with_as_many_to_the_bit_and_with_more_or_fewer_to_rounding(
    two: tuple[Path, list[dict[str, Any]]], tales: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, events = two
    monkeypatch.setenv("GRIMMGEN_HOME", str(directory))
    half = max(e["step"] for e in events if e["event"] == "stepped") // 3
    first, second = trained_together(tales, "stopped", stop=half)
    assert first[-1]["reason"] == second[-1]["reason"] == "interrupted"
    assert first[-1]["step"] == second[-1]["step"] == half
    # As it is, with one.
    fewer = registry.find("stopped").path.with_name("fewer")
    shutil.copytree(registry.find("stopped").path, fewer)
    list(Training.resume(registry.find("fewer")).events())
    assert close("fewer", "two")
    trained_together(tales, "stopped", begin=False)
    assert same_to_the_bit("stopped", "two")
    # What one has begun, with two.
    training = Training.begin(open_corpus(str(tales)), Configuration(**OPTIONS), run="more")
    for event in training.events():
        if isinstance(event, Stepped) and event.step == half:
            training.stop()
    trained_together(tales, "more", begin=False)
    assert close("more", "two")


@pytest.mark.slow
def test_a_large_text_is_encoded_once_and_shared(
    two: tuple[Path, list[dict[str, Any]]], tales: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = two
    monkeypatch.setenv("GRIMMGEN_HOME", str(directory))
    events = trained_together(tales, "large", before=_LARGE)
    assert sum(event["event"] == "encoded" for own in events for event in own) == 1
    assert len(list((directory / "cache" / "tokens").glob("*.ids"))) == 1
    assert same_to_the_bit("large", "two")


# --- that they end together --------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_before_the_command_one_draws_and_a_signal_saves_once(training: list[str], home: Path) -> None:
    command = ["-m", "--", "grimmgen", "train", "--run", "sly-owl", *training, "--epochs", "100000", "--json"]
    with torchrun(*command) as process:
        assert process.stdout is not None
        lines: list[dict[str, Any]] = []
        while len(lines) < 20:
            lines.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=_PATIENCE)
    events = [*lines, *map(json.loads, out.decode().splitlines())]
    steps = [event["step"] for event in events if event["event"] == "stepped"]
    assert steps == list(range(1, len(steps) + 1))
    assert [e["event"] for e in events if e["event"] in {"started", "finished"}] == ["started", "finished"]
    assert events[-1]["reason"] == "interrupted"
    hint = "go on with: torchrun --nproc-per-node 2 -m -- grimmgen train --resume --run sly-owl"
    assert err.decode().splitlines().count(hint) == 1
    assert "error: " not in err.decode()
    progress = Checkpoint.read(registry.find("sly-owl").last_path).progress
    assert progress is not None
    assert progress["step"] == steps[-1]
    assert [run.name for run in registry.all_runs()] == ["sly-owl"]
    assert not list(home.rglob("*.tmp"))


# Becomes the program in which the second rank does this within its fifth update.
_STRICKEN = """
import os, signal, sys, torch
from grimmgen.cli import main
from grimmgen.network.model import LanguageModel
whole, calls = LanguageModel.loss, []
def loss(*given):
    calls.append(given)
    if len(calls) == 5 and os.environ["RANK"] == "1":
        {strike}
    return whole(*given)
LanguageModel.loss = loss
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strike", "message"),
    [
        (
            "raise torch.OutOfMemoryError",
            "the device is out of memory at update 5: lower --batch-size or --unroll",
        ),
        ("raise RuntimeError('what')", "a bug of ours, RuntimeError: what: please report it at"),
        ("os.kill(os.getpid(), signal.SIGKILL)", None),
    ],
)
def test_an_error_on_one_rank_ends_all_and_is_told_once(
    strike: str, message: str | None, training: list[str], tmp_path: Path
) -> None:
    program = tmp_path / "stricken.py"
    program.write_text(_STRICKEN.format(strike=strike), encoding="utf-8")
    with torchrun("--", str(program), "train", "--run", "sly-owl", *training) as process:
        out, err = process.communicate(timeout=_PATIENCE)
    told = [line for line in err.decode().splitlines() if line.startswith("error: ")]
    assert process.returncode == 1
    assert out == b""
    if message is None:
        # torchrun may have ended the other before it has noticed.
        assert [line for line in told if "another of the processes has ended" not in line] == []
        assert len(told) <= 1
    else:
        assert len(told) == 1
        assert told[0].startswith(f"error: {message}")
    assert not registry.find("sly-owl").last_path.exists()


@pytest.mark.slow
def test_what_all_ranks_find_wrong_is_told_once_and_what_only_one_has_been_given_is_refused(
    tales: Path, home: Path
) -> None:
    options = {**OPTIONS, "batch_size": 1}
    ran = together(_TRAIN, json.dumps([str(tales), options, "few", True, 0]))
    assert sorted(one.code for one in ran) == [1, 2]
    told = "".join(one.err for one in ran)
    assert told.count("UsageError: --batch-size 1 is less than a row for each of 2 processes") == 1
    assert told.count("UsageError: ") == 1
    code = """
        from grimmgen.errors import UsageError
        import os
        assert ranks.told(lambda: {"told": [ranks.rank, "ä", 0.1]}) == {"told": [0, "ä", 0.1]}
        assert ranks.same(lambda: "this")
        assert not ranks.same(lambda: ranks.rank)
        assert ranks.most(ranks.rank) == 1
        assert ranks.agree([7.5 - ranks.rank, -1.0], ranks.rank == 1) == ([7.5, -1.0], True)
        assert ranks.agree([7.5 - ranks.rank, -1.0], False) == ([7.5, -1.0], False)
    """
    assert [one.code for one in together(code)] == [0, 0]
    ran = together(code, "--epochs=RANK")
    assert "".join(one.err for one in ran).count("UsageError: the processes were given unlike commands") == 1
    assert not (home / "data" / "runs").exists()
