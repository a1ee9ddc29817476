"""The Python interface: what `fit` takes and returns, interrupts, and errors in the form of arguments."""

from __future__ import annotations

import inspect
import io
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import grimmgen
from grimmgen import api
from grimmgen.configuration import Configuration, options_of
from grimmgen.display import Display
from grimmgen.errors import GrimmgenError, UsageError
from grimmgen.io import paths
from grimmgen.reading import sources
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.events import Event, Finished, Started, Stepped
from grimmgen.runs.registry import Run
from grimmgen.sampling.options import PAGE_LENGTHS, SamplingOptions
from grimmgen.text import encoding
from tests.builders import TEXTS, TINY


def test_names_of_the_package_are_listed() -> None:
    assert dir(grimmgen) == sorted(grimmgen.__all__)
    assert {"Model", "fit", "load", "train"} <= {*dir(grimmgen)}
    assert all(hasattr(grimmgen, name) for name in dir(grimmgen))


def test_fit_returns_the_model_of_a_new_run(tales: Path) -> None:
    model = grimmgen.fit(tales, run="sly-owl", **(TINY | {"epochs": 2}))
    first, second = model.history
    assert (model.name, first["epoch"], second["epoch"]) == ("sly-owl", 1, 2)
    assert first.keys() == second.keys() >= {"step", "seconds", "training_perplexity", "perplexity", "best"}
    assert "sly-owl" in repr(model)
    best = min(row["perplexity"] for row in model.history)
    assert model.evaluate().total.perplexity == pytest.approx(best, rel=1e-4)
    assert len(model.evaluate(split="train").documents) == 22
    assert model.generate("the king", length=20).startswith("the king")
    assert grimmgen.load().name == "sly-owl"


def test_running_a_cell_again_keeps_the_first_run() -> None:
    models = [grimmgen.fit(TEXTS, run="owl", **TINY) for _ in range(3)]
    assert [model.name for model in models] == ["owl", "owl-2", "owl-3"]
    assert [run.name for run in registry.all_runs()] == ["owl", "owl-2", "owl-3"]
    assert grimmgen.load("owl").checkpoint.provenance["run"] == "owl"


def test_texts_in_a_list_are_documents() -> None:
    model = grimmgen.fit(iter(TEXTS), **TINY)
    split = model.model.split()
    assert split.by_story
    assert sorted(d.read() for part in split.parts.values() for d in part) == sorted(TEXTS)
    # The texts are kept, so that the run can be resumed.
    assert len(grimmgen.fit(resume=True, epochs=2).history) == 2
    assert [score.name for score in model.evaluate(TEXTS[:2]).documents] == ["text 1", "text 2"]


def test_training_starts_from_a_model(trained: Run, tales: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "unroll": 10, "epochs": 1}
    model = grimmgen.load()
    model.save(tmp_path / "fox.safetensors")
    models = [
        grimmgen.fit(tales, base=base, **options) for base in (model, trained.name, tmp_path / "fox.safetensors")
    ]
    # Nearly as good as the model before it has learnt anything else.
    assert all(one.evaluate().total.perplexity < 1.1 * model.evaluate().total.perplexity for one in models)
    with pytest.raises(UsageError, match=r"^hidden 9 contradicts base, whose model has hidden 8"):
        grimmgen.fit(tales, base=model, hidden=9)


def test_paths_in_a_list_are_files(tales: Path) -> None:
    corpus = list(tales.glob("*.txt"))
    [event] = [event for event in grimmgen.train(corpus, **TINY) if isinstance(event, Started)]
    assert sum(event.stories) == 30
    with pytest.raises(UsageError, match=r"names of files, as '.*: give each as a pathlib.Path"):
        grimmgen.fit([str(path) for path in corpus])


def test_train_creates_nothing_before_its_first_event(home: Path) -> None:
    # Fault 55.
    events = grimmgen.train(TEXTS, **TINY)
    assert not home.exists()
    assert isinstance(next(events), Started)
    [run] = registry.all_runs()
    assert not run.has_checkpoint
    assert isinstance([*events][-1], Finished)
    assert run.has_checkpoint


def test_reading_a_large_text_does_not_count_as_training(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {name: value for name, value in TINY.items() if name != "preset"}
    begin = api._prepare(TEXTS, "tutorial", None, False, None, (), None, "auto", options)
    assert begin(None, 5.0).counted_from == 5.0
    monkeypatch.setattr(encoding, "IN_MEMORY", 10)
    counted_from = begin(None, 5.0).counted_from
    assert counted_from is not None
    assert counted_from > 5.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bugdet": "5s"}, "no option 'bugdet', did you mean budget: the function's help"),
        ({"qqq": 1}, "no option 'qqq': the function's help lists all"),
        ({"lr": 1e9}, r"^lr 1e\+09 is out of range: give 1e-12 to "),
        ({"learning_rate": 1.0, "lr": 1.0}, "lr is another name of an option that is given already"),
        ({"batch_size": "many"}, "^batch_size 'many' is not a whole number: give 1 to "),
        ({"hidden": 2.5}, "^hidden '2.5' is not a whole number"),
        ({"tied": "yes"}, "^tied 'yes' is not True or False"),
        ({"budget": "5 parsecs"}, "^budget '5 parsecs' is not a duration"),
        ({"keep_case": True, "language": "tr"}, "^language has no effect with keep_case: leave out language"),
        ({"tied": True}, "^tied has no effect without embedding"),
        ({"rounds": 2}, "^rounds has no effect with cell lstm"),
        ({"preset": "quik"}, "^preset 'quik' is not known, did you mean quick: give tutorial or "),
        ({"resume": True, "hidden": 9, "split": "x.json"}, "^hidden, split cannot be given with resume"),
        ({"corpus": TEXTS, "documents": "line"}, "documents has no effect on texts"),
        ({"corpus": "Once upon a time\n" * 999}, r"no corpus 'Once upon .*texts in a list, as in \[text\]"),
        ({"corpus": []}, "the list is empty"),
        ({"corpus": ["a", 2.5]}, "text 2 is not a string, but of the type float"),
        ({"corpus": {"text": TEXTS}}, r"of the type dict: .*as in table\['text'\]"),
        ({"corpus": 7}, "of the type int"),
        ({"corpus": io.StringIO("a text")}, "of the type StringIO: give a path"),
    ],
)
def test_wrong_arguments_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        grimmgen.fit(**options)
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)
    assert not paths.runs_directory().exists()


def test_too_long_a_text_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fault 21: as a line of the file that keeps the texts it would not be read.
    monkeypatch.setattr(sources, "LONGEST_ROW", 1 << 20)
    with pytest.raises(UsageError, match="text 2 is longer than 1 MB: write it to a file"):
        grimmgen.fit(["a", "b" * (1 << 20)])
    assert not [path for path in paths.given_texts_directory().iterdir() if path.is_file()]


def test_commands_in_an_error_stay_as_they_are() -> None:
    with pytest.raises(GrimmgenError, match=r"run `grimmgen fetch`, or .* with corpus sampler"):
        grimmgen.fit()
    with pytest.raises(UsageError, match="give `x --lr` or lr"), api._arguments_in_errors():
        raise UsageError("a/--lr", "give `x --lr` or --lr")


@pytest.mark.parametrize("function", [grimmgen.fit, grimmgen.train])
def test_signature_has_all_options_of_the_shell(function: Callable[..., object]) -> None:
    parameters, help_text = inspect.signature(function).parameters, inspect.getdoc(function) or ""
    for option in options_of(Configuration).values():
        assert parameters[option.parameter].kind == inspect.Parameter.KEYWORD_ONLY
        assert f"    {option.parameter}: " in help_text
    assert "--" not in help_text


def stop_at(steps: int, monkeypatch: pytest.MonkeyPatch, presses: int = 1) -> None:
    """Interrupt a training after so many updates."""
    show = Display.show

    def interrupting(display: Display, event: Event) -> None:
        show(display, event)
        if isinstance(event, Stepped) and event.step == steps:
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Display, "show", interrupting)


def test_interrupt_returns_the_model_so_far(tales: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fault 33.
    before = signal.getsignal(signal.SIGINT)
    stop_at(3, monkeypatch)
    model = grimmgen.fit(tales, run="owl", **TINY)
    assert (model.checkpoint.provenance["step"], model.history) == (3, [])
    assert signal.getsignal(signal.SIGINT) == before


def test_interrupting_twice_raises(tales: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(3, monkeypatch, presses=2)
    with pytest.raises(KeyboardInterrupt):
        grimmgen.fit(tales, **TINY)


def test_interrupt_before_the_first_update_raises(tales: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Display, "note", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        grimmgen.fit(tales, **TINY)


def test_fit_works_in_a_thread() -> None:
    found: list[grimmgen.Model] = []
    thread = threading.Thread(target=lambda: found.append(grimmgen.fit(TEXTS, **TINY)))
    thread.start()
    thread.join()
    assert len(found[0].history) == 1


def test_saved_model_generates_the_same(trained: Run, tmp_path: Path) -> None:
    del trained
    model, path = grimmgen.load(), tmp_path / "fox.safetensors"
    path.write_bytes(b"an earlier file")
    model.save(path)
    copy = grimmgen.load(path)
    assert copy.generate("the", random_seed=3) == model.generate("the", random_seed=3)
    assert Checkpoint.read(path).training_tensors == {}
    assert copy.history == []
    with pytest.raises(UsageError, match=r"fox\.safetensors is a file, without the texts"):
        copy.evaluate()
    with pytest.raises(UsageError, match="has no learning curve: load its run"):
        model.plot(copy)
    for wrong in "fox", "fox.txt", tmp_path:
        with pytest.raises(UsageError, match=r"let it end in \.safetensors"):
            model.save(wrong)


@pytest.mark.usefixtures("trained")
def test_generate_has_the_defaults_of_the_shell() -> None:
    model = grimmgen.load()
    texts = {model.generate("the king") for _ in range(4)}
    assert len(texts) > 1
    assert all(len(text) <= PAGE_LENGTHS[1] + 8 for text in texts)
    # All options of a record, None among them, reproduce its text.
    decoding = {name: getattr(SamplingOptions(), name) for name in options_of(SamplingOptions)}
    assert model.generate("the king", **decoding) == "".join(model.stream("the king", SamplingOptions()))
    with pytest.raises(UsageError, match="no option 'lenght', did you mean length"):
        model.generate(lenght=3)
    with pytest.raises(UsageError, match=r"^top_p 3 is out of range"):
        model.generate(top_p=3)


@pytest.mark.usefixtures("trained")
def test_learning_curves_are_a_figure_that_jupyter_displays() -> None:
    pytest.importorskip("matplotlib")
    drawn: Any = grimmgen.load().plot("sly-fox", over="seconds")
    assert drawn.axes[0].get_xlabel() == "seconds of training"
    assert drawn._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(GrimmgenError, match="there is no run owl"):
        grimmgen.load().plot("owl")
    with pytest.raises(UsageError, match="give steps or seconds"):
        grimmgen.load().plot(over="epochs")  # type: ignore[arg-type]


@pytest.mark.usefixtures("trained")
def test_evaluation_takes_texts_paths_and_parts(tales: Path) -> None:
    model = grimmgen.load()
    assert len(model.evaluate(tales).documents) == 30
    assert model.evaluate([(tales / "00.txt").read_text()]).total.nats == pytest.approx(
        model.evaluate(tales / "00.txt").total.nats
    )
    with pytest.raises(UsageError, match=r"^split 'all' is not known: give train or valid or test"):
        model.evaluate(split="all")  # type: ignore[arg-type]


def test_stopping_to_iterate_saves(tales: Path) -> None:
    def steps(events: Iterator[Event]) -> Iterator[int]:
        yield from (event.step for event in events if isinstance(event, Stepped))

    events = grimmgen.train(tales, run="owl", **TINY)
    for step in steps(events):
        if step == 3:
            break
    events.close()  # type: ignore[attr-defined]
    assert grimmgen.load("owl").checkpoint.provenance["step"] == 3
