"""Options as they are declared: ranges, requirements, JSON; and the shapes of the weights that follow."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grimmgen.configuration import (
    OPTIONS,
    PRESETS,
    Configuration,
    Option,
    from_arguments,
    options_of,
    preset_options,
)
from grimmgen.errors import IntegrityError, UsageError
from grimmgen.network.cells import cells
from grimmgen.network.shapes import parameter_count, weight_shapes
from grimmgen.sampling.options import SamplingOptions

NUMBERS = {name for name, option in OPTIONS.items() if option.type in (int, float)}
NOT_FINITE = (math.nan, math.inf, -math.inf)
# Values of texts without choices, and values that they do not take.
TEXTS: dict[str, tuple[list[Any], list[Any]]] = {
    "documents": (
        ["line", "paragraph", "^---$", r"\n\n+"],
        ["", "lines", "(", "a*", "(?:" * 5000, "^", "x" * 999],
    ),
    "encoding": (["utf-8", "cp1252", None], ["", "utf-9", "rot13", "base64", "a\nb", "\0", "x" * 999]),
    "column": (["text", "Der Text", None], ["", "a\nb", "\0"]),
    "field": (["text", None], ["", "a\nb", "\0"]),
    "tokens": (
        ["char", "bigram", "ngram:8", "word", "bpe:8", "bpe:1048576"],
        ["", "words", "Word", "ngram", "ngram:1e3", "bpe", "bpe:7", "bpe:1048577", "bpe:-9", "a\nb", "x" * 999],
    ),
}
HUGE = (2**63, 10**400, 10**5000, -(10**400))


def within(option: Option) -> list[Any]:
    """Values of an option, the smallest and the largest among them."""
    if option.type is bool:
        return [True, False]
    if option.name in TEXTS:
        return TEXTS[option.name][0]
    return [*option.choices()] or [option.low, option.high, *[None] * option.optional]


def beyond(option: Option) -> list[Any]:
    """Values that an option does not take."""
    if option.choices():
        return ["", option.choices()[0].title(), "uniform", "x" * 999, "a\nb"]
    if option.name in TEXTS:
        return TEXTS[option.name][1]
    assert option.low is not None
    assert option.high is not None
    if option.type is int:
        return [option.low - 1, option.high + 1, *HUGE, *NOT_FINITE]
    return [math.nextafter(option.low, -math.inf), math.nextafter(option.high, math.inf), *HUGE, *NOT_FINITE]


def test_the_documented_options_are_those_declared() -> None:
    # A new option, or another default or range, has to be written to docs/options.md on purpose.
    script = Path(__file__).parent.parent / "docs" / "options.py"
    ran = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("options", [Configuration, SamplingOptions])
def test_every_option_has_a_help_a_range_and_a_valid_default(options: type) -> None:
    for option in options_of(options).values():
        assert option.description
        assert not option.description.endswith(".")
        assert option.type is bool or option.limits or option.name == "until"
        option.check(option.default)


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.type is not bool])
def test_an_option_out_of_range_is_refused_by_its_name(name: str) -> None:  # fault 38
    for value in beyond(OPTIONS[name]):
        with pytest.raises(UsageError) as caught:
            Configuration(**{name: value})
        assert caught.value.exit_code == 2
        assert caught.value.what.startswith(OPTIONS[name].flags[0] + " ")
        assert caught.value.remedy.startswith("give ")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "--hidden 0 is out of range: give 1 to 32768"),
        ({"dropout": 1.1}, "--dropout 1.1 is out of range: give 0 to 0.99"),
        ({"learning_rate": math.nan}, "--lr nan is out of range: give 1e-12 to 1e+06"),
        ({"budget": 0.0}, "--budget 0 is out of range: give 0.001s to 1000000000s, as in 30s, 10m, 1h"),
        ({"initialisation": "zeros"}, "--init 'zeros' is not known: give auto or normal or xavier"),
        ({"ngram": 9}, "--ngram 9 is out of range: give 1 to 8"),
        ({"ngram": 3, "tokens": "word"}, "--ngram and --tokens exclude each other: give one of them"),
        ({"tokens": "word", "phases": True}, "--phases has no effect with --tokens word: leave out --phases"),
        ({"cell": "rnn"}, f"--cell 'rnn' is not known: give {' or '.join(cells())}"),
        ({"cell": "mogrifier"}, "--cell mogrifier needs --embedding: give it as well, as in --embedding 256"),
        ({"tied": True}, "--tied has no effect without --embedding: give --embedding as well"),
        ({"input_dropout": 0.1}, "--input-dropout has no effect without --embedding: give --embedding as well"),
    ],
)
def test_the_error_names_the_option_and_the_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        Configuration(**options)


@pytest.mark.parametrize("name", OPTIONS)
def test_values_within_the_range_survive_json(name: str) -> None:
    for value in within(OPTIONS[name]):
        configuration = Configuration(**{"embedding": 8, "tied": False, name: value})
        assert getattr(configuration, name) == value
        assert Configuration.from_json(json.loads(json.dumps(configuration.to_json()))) == configuration


def stored() -> dict[str, Any]:
    return Configuration(budget=60.0).to_json()


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_a_stored_configuration_is_an_object(value: object) -> None:
    with pytest.raises(IntegrityError, match="configuration is not a JSON object") as caught:
        Configuration.from_json(value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["bias", "x" * 999, ""])
def test_an_unknown_stored_option_is_named(name: str) -> None:
    with pytest.raises(IntegrityError, match=f"'{name[:80]}'.*upgrade grimmgen"):
        Configuration.from_json(stored() | {name: True})


@pytest.mark.parametrize("name", OPTIONS)
def test_a_missing_stored_option_is_the_default(name: str) -> None:
    value = {k: v for k, v in Configuration(hidden=7, embedding=4, ngram=3).to_json().items() if k != name}
    # Earlier versions read the licences of Project Gutenberg, and trained to the last epoch.
    kept = {"keep_boilerplate": True, "patience": 0}
    earlier: dict[str, Any] = {name: kept[name]} if name in kept else {}
    assert Configuration.from_json(value) == Configuration(**value, **earlier)
    assert getattr(Configuration.from_json(value), name) == earlier.get(name, OPTIONS[name].default)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_stored_option_of_the_wrong_type_is_named(name: str) -> None:
    option = OPTIONS[name]
    wrong: list[object] = ["3", b"3", [], [3], {}, None, True, False, 0, 1, 2.0]
    for value in wrong:
        fits = type(value) is option.type or (option.type is float and type(value) is int)
        if fits or (value is None and option.optional):
            continue
        with pytest.raises(IntegrityError, match=f"configuration's {name} has the wrong type"):
            Configuration.from_json(stored() | {name: value})


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_stored_option_out_of_range_is_named(name: str) -> None:  # fault 26
    flag = re.escape(OPTIONS[name].flags[0])
    for text in ("-1", "NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 400):
        value = json.loads(json.dumps(stored() | {name: "?"}).replace('"?"', text))
        with pytest.raises(IntegrityError, match=rf"configuration.*({flag}|{name})") as caught:
            Configuration.from_json(value)
        assert "\n" not in str(caught.value)


def test_weight_shapes_of_one_layer() -> None:
    configuration = Configuration(hidden=3)
    assert weight_shapes(configuration, 5) == {
        "layers.0.input_weight": (5, 12),
        "layers.0.recurrent_weight": (3, 12),
        "layers.0.bias": (12,),
        "output.weight": (3, 5),
        "output.bias": (5,),
    }
    assert parameter_count(configuration, 5) == 60 + 36 + 12 + 15 + 5


def test_weight_shapes_of_two_layers() -> None:
    configuration = Configuration(hidden=3, layers=2)
    assert weight_shapes(configuration, 5) == weight_shapes(Configuration(hidden=3), 5) | {
        "layers.1.input_weight": (3, 12),
        "layers.1.recurrent_weight": (3, 12),
        "layers.1.bias": (12,),
    }
    assert parameter_count(configuration, 5) == 128 + 36 + 36 + 12


@pytest.mark.parametrize(
    ("cell", "of_first", "of_second"),
    [
        ("lstm", {}, {}),
        ("peephole", {"peephole": (3, 3)}, {"peephole": (3, 3)}),
        ("gru", {"recurrent_bias": (3,)}, {"recurrent_bias": (3,)}),
        ("mogrifier", {"q": (3, 3, 4), "r": (2, 4, 3)}, {"q": (3, 3, 3), "r": (2, 3, 3)}),
    ],
)
def test_weight_shapes_of_cells_over_a_tied_embedding(
    cell: Any, of_first: dict[str, tuple[int, ...]], of_second: dict[str, tuple[int, ...]]
) -> None:
    gates = 9 if cell == "gru" else 12
    shapes = weight_shapes(Configuration(cell=cell, hidden=3, layers=2, embedding=4, tied=True), 5)
    layers = {
        f"layers.{layer}.{name}": shape
        for layer, (inputs, more) in enumerate([(4, of_first), (3, of_second)])
        for name, shape in {
            "input_weight": (inputs, gates),
            "recurrent_weight": (3, gates),
            "bias": (gates,),
            **more,
        }.items()
    }
    assert shapes == {"embedding": (5, 4), **layers, "output.projection": (3, 4), "output.bias": (5,)}
    untied = weight_shapes(Configuration(cell=cell, hidden=3, layers=2, embedding=4), 5)
    assert untied == {"embedding": (5, 4), **layers, "output.weight": (3, 5), "output.bias": (5,)}


@pytest.mark.parametrize("rounds", range(6))
def test_the_rounds_of_a_mogrifier_alternate_from_the_inputs(rounds: int) -> None:
    shapes = weight_shapes(Configuration(cell="mogrifier", rounds=rounds, hidden=3, embedding=4), 5)
    assert shapes["layers.0.q"] == ((rounds + 1) // 2, 3, 4)
    assert shapes["layers.0.r"] == (rounds // 2, 4, 3)


def test_tokens_have_several_names() -> None:
    names = {"ngram:1": "char", "ngram:2": "bigram", "3": "ngram:3", "bpe:0900": "bpe:900", "word": "word"}
    assert {name: Configuration(tokens=name).tokens for name in names} == names
    assert Configuration(ngram=3) == Configuration(tokens="ngram:3")
    assert Configuration(tokens="ngram:2").departures() == {}


def test_ngram_of_an_earlier_version_is_read() -> None:  # fault 50
    old = {name: value for name, value in stored().items() if name != "tokens"}
    for ngram, tokens in (1, "char"), (2, "bigram"), (8, "ngram:8"):
        assert Configuration.from_json(old | {"ngram": ngram}).tokens == tokens
    damaged: dict[Any, str] = {"3": "wrong type", True: "wrong type", 9: "--tokens ngram:9 is out of range"}
    for value, message in damaged.items():
        with pytest.raises(IntegrityError, match=f"configuration.*{message}"):
            Configuration.from_json(old | {"ngram": value})


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_leave_phases_out_where_tokens_have_none(preset: str) -> None:
    for tokens in ("word", "bpe:99"):
        assert not Configuration(**preset_options(preset, {"tokens": tokens})).phases
    phases = PRESETS[preset].get("phases", False)
    assert Configuration(**preset_options(preset, {"tokens": "ngram:3"})).phases == phases
    with pytest.raises(UsageError, match="--phases has no effect with --tokens word"):
        Configuration(**preset_options(preset, {"tokens": "word", "phases": True}))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_only_options_that_are_not_the_tutorials(name: str) -> None:
    configuration = Configuration(**PRESETS[name])
    assert Configuration.from_json(json.loads(json.dumps(configuration.to_json()))) == configuration
    assert configuration.departures() == PRESETS[name]


def test_the_tutorial_is_the_default_preset() -> None:
    assert next(iter(PRESETS)) == "tutorial"
    assert Configuration(**PRESETS["tutorial"]) == Configuration()


@pytest.mark.parametrize("options", [Configuration, SamplingOptions])
def test_arguments_of_python_are_those_of_the_shell(options: type) -> None:
    for name, option in options_of(options).items():
        # Each value as it is typed, as it is, and by the name of the field.
        values = [value for value in within(option) if value is not None]
        for value in values:
            given = value != option.inverted if option.type is bool else value
            assert from_arguments(options, {option.parameter: given}) == {name: pytest.approx(value)}
            assert from_arguments(options, {name: value}) == {name: pytest.approx(value)}
            if option.type is not bool:
                assert from_arguments(options, {option.parameter: option.typed(value)}) == {
                    name: pytest.approx(value)
                }
        assert from_arguments(options, {option.parameter: None}) == {}
        with pytest.raises(UsageError, match=f"^{option.flags[0]} .* is not "):
            from_arguments(options, {name: [1]})
    assert from_arguments(Configuration, {"ngram": "3"}) == {"tokens": "ngram:3"}
