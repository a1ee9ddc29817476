"""The options of a run: their ranges, their JSON, and the shapes that follow from them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any, NamedTuple

import pytest

from grimmgen.configuration import PRESETS, Configuration
from grimmgen.errors import IntegrityError, UsageError
from grimmgen.network.shapes import parameter_count, weight_shapes

NOT_FINITE = (math.nan, math.inf, -math.inf, 1e400)
VAST = (2**31, 2**63, 10**400, 10**5000, -(10**400))


class Option(NamedTuple):
    flag: str
    within: tuple[Any, ...]  # the smallest, the largest and others
    beyond: tuple[Any, ...]


def whole(flag: str, low: int, high: int) -> Option:
    vast = tuple(n for n in VAST if not low <= n <= high)
    return Option(flag, (low, high), (low - 1, high + 1, -1, *vast, *NOT_FINITE))


def real(flag: str, low: float, high: float, *beyond: float) -> Option:
    whole_numbers = (n for n in (0, 1) if low <= n <= high)
    return Option(flag, (low, high, *whole_numbers), (*beyond, -1.0, -5e-324, 10**400, 1e300, *NOT_FINITE))


def word(flag: str, *known: str) -> Option:
    return Option(flag, known, ("", known[0].title(), "uniform", "x" * 999, "a\nb"))


OPTIONS = {
    "cell": word("--cell", "lstm", "peephole", "gru", "mogrifier"),
    "rounds": whole("--rounds", 0, 20),
    "hidden": whole("--hidden", 1, 32768),
    "layers": whole("--layers", 1, 64),
    "embedding": whole("--embedding", 0, 32768),
    "dropout": real("--dropout", 0.0, 0.99, 1.0, 1.1),
    "dropout_mode": word("--dropout-mode", "tutorial", "output", "locked"),
    "input_dropout": real("--input-dropout", 0.0, 0.99, 1.0, 1.1),
    "weight_drop": real("--weight-drop", 0.0, 0.99, 1.0, 1.1),
    "initialisation": word("--init", "auto", "normal", "xavier"),
    "batch_size": whole("--batch-size", 1, 1048576),
    "unroll": whole("--unroll", 1, 1048576),
    "learning_rate": real("--lr", 1e-12, 1e6, 0, 0.0),
    "clip": real("--clip", 1e-12, 1e12, 0, 0.0),
    "weight_decay": real("--weight-decay", 0.0, 1000.0, 1000.1),
    "schedule": word("--schedule", "plateau", "cosine"),
    "precision": word("--precision", "auto", "fp32", "bf16"),
    "warmup": real("--warmup", 0.0, 1.0, 1.001),
    "decay_factor": real("--decay-factor", 1e-6, 1.0, 0.0, 1.001),
    "decay_patience": whole("--decay-patience", 1, 1048576),
    "epochs": whole("--epochs", 1, 2**30),
    "budget": real("--budget", 0.001, 1e9, 0, 0.0)._replace(within=(0.001, 1e9, 60, None)),
    "random_seed": whole("--random-seed", 0, 2**63 - 1),
    "ngram": whole("--ngram", 1, 8),
    "min_count": whole("--min-count", 1, 2**40),
    "newlines": word("--newlines", "keep", "space"),
}
FLAGS = {"tied", "reset_state", "lower", "phases"}
WORDS = {name for name, option in OPTIONS.items() if isinstance(option.within[0], str)}
FIELDS = [field.name for field in dataclasses.fields(Configuration)]


def test_every_option_is_among_these() -> None:
    assert {*OPTIONS, *FLAGS} == set(FIELDS)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_out_of_range_is_refused_by_its_name(name: str) -> None:  # fault 38
    for value in OPTIONS[name].beyond:
        with pytest.raises(UsageError) as caught:
            Configuration(**{name: value})
        assert caught.value.exit_code == 2
        assert caught.value.what.startswith(OPTIONS[name].flag + " ")
        assert caught.value.remedy.startswith("give ")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "--hidden 0 is out of range: give 1 to 32768"),
        ({"unroll": 1048577}, "--unroll 1048577 is out of range: give 1 to 1048576"),
        ({"dropout": 1.1}, "--dropout 1.1 is out of range: give 0 to 0.99"),
        ({"learning_rate": math.nan}, "--lr nan is out of range: give 1e-12 to 1e+06"),
        ({"budget": 0.0}, "--budget 0 is out of range: give 0.001 to 1e+09 (as in 30s, 10m, 1h)"),
        ({"initialisation": "zeros"}, "--init 'zeros' is not known: give auto or normal or xavier"),
        ({"cell": "rnn"}, "--cell 'rnn' is not known: give lstm or peephole or gru or mogrifier"),
        (
            {"cell": "mogrifier"},
            "--cell mogrifier needs an embedding to modulate: give --embedding, as in --embedding 256",
        ),
        (
            {"tied": True},
            "--tied needs an embedding to use once more: give --embedding, as in --embedding 256",
        ),
        (
            {"input_dropout": 0.1},
            "--input-dropout needs an embedding to drop from: give --embedding, as in --embedding 256",
        ),
    ],
)
def test_the_refusal_says_what_to_give(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        Configuration(**options)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_within_its_range_is_taken_and_survives_json(name: str) -> None:
    for value in OPTIONS[name].within:
        # Some options ask for an embedding.
        configuration = Configuration(**{"embedding": 8, name: value})
        assert getattr(configuration, name) == value
        assert Configuration.from_json(json.loads(json.dumps(configuration.to_json()))) == configuration


def stored() -> dict[str, Any]:
    return Configuration(budget=60.0).to_json()


@pytest.mark.parametrize("value", [None, [], "x", 3, {}, {"hidden": 128}, stored() | {"bias": True}])
def test_a_configuration_with_other_options_is_refused(value: object) -> None:
    with pytest.raises(IntegrityError, match="has other options than this grimmgen") as caught:
        Configuration.from_json(value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", FIELDS)
def test_a_configuration_that_lacks_an_option_is_refused(name: str) -> None:
    with pytest.raises(IntegrityError, match="has other options than this grimmgen"):
        Configuration.from_json({k: v for k, v in stored().items() if k != name})


@pytest.mark.parametrize("name", FIELDS)
def test_an_option_of_the_wrong_type_is_refused(name: str) -> None:
    default = getattr(Configuration(budget=60.0), name)
    wrong: list[object] = ["3", b"3", [], [3], {}]
    wrong += [] if name == "budget" else [None]
    wrong += [0, 1] if isinstance(default, bool) else [True, False]
    wrong += [] if isinstance(default, float) else [2.0]
    for value in [w for w in wrong if type(w) is not type(default)]:
        with pytest.raises(IntegrityError, match=f"configuration's {name} has the wrong type"):
            Configuration.from_json(stored() | {name: value})


@pytest.mark.parametrize("text", ["-1", "NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 400])
@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in WORDS])
def test_an_option_out_of_range_in_a_file_is_an_integrity_error(name: str, text: str) -> None:  # fault 26
    value = json.loads(json.dumps(stored() | {name: "?"}).replace('"?"', text))
    with pytest.raises(
        IntegrityError, match=rf"configuration.*({re.escape(OPTIONS[name].flag)}|{name})"
    ) as caught:
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
def test_weight_shapes_of_every_cell_over_a_tied_embedding(
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


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_configuration_and_says_only_what_departs_from_the_tutorial(name: str) -> None:
    configuration = Configuration(**PRESETS[name])
    assert Configuration.from_json(json.loads(json.dumps(configuration.to_json()))) == configuration
    assert configuration.departures() == PRESETS[name]


def test_the_tutorial_is_the_default_preset() -> None:
    assert next(iter(PRESETS)) == "tutorial"
    assert Configuration(**PRESETS["tutorial"]) == Configuration()
