"""The options of a run: their ranges, their JSON, and the shapes that follow from them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any, NamedTuple

import pytest

from grimmgen.configuration import Configuration, parameter_count, weight_shapes
from grimmgen.errors import IntegrityError, UsageError

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


OPTIONS = {
    "hidden": whole("--hidden", 1, 32768),
    "layers": whole("--layers", 1, 64),
    "dropout": real("--dropout", 0.0, 0.99, 1.0, 1.1),
    "initialisation": Option("--init", ("auto", "normal", "xavier"), ("", "Normal", "uniform", "x" * 999, "a\nb")),
    "batch_size": whole("--batch-size", 1, 1048576),
    "unroll": whole("--unroll", 1, 1048576),
    "learning_rate": real("--lr", 1e-12, 1e6, 0, 0.0),
    "clip": real("--clip", 1e-12, 1e12, 0, 0.0),
    "decay_factor": real("--decay-factor", 1e-6, 1.0, 0.0, 1.001),
    "decay_patience": whole("--decay-patience", 1, 1048576),
    "epochs": whole("--epochs", 1, 2**30),
    "budget": real("--budget", 0.001, 1e9, 0, 0.0)._replace(within=(0.001, 1e9, 60, None)),
    "random_seed": whole("--random-seed", 0, 2**63 - 1),
    "ngram": whole("--ngram", 1, 8),
    "min_count": whole("--min-count", 1, 2**40),
}
FLAGS = {"reset_state", "lower"}
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
    ],
)
def test_the_refusal_says_what_to_give(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        Configuration(**options)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_within_its_range_is_taken_and_survives_json(name: str) -> None:
    for value in OPTIONS[name].within:
        configuration = Configuration(**{name: value})
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
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "initialisation"])
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
