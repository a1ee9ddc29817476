"""The sampling options: ranges, and combinations that are refused."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest

from grimmgen.errors import UsageError
from grimmgen.sampling.options import SamplingOptions, with_defaults


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("length", 0),
        ("length", -1),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", math.nan),
        ("min_p", 1.5),
        ("temperature", -0.1),
        ("temperature", math.nan),  # fault 42
        ("temperature", math.inf),
        ("repetition_penalty", 0.9),
        ("beam_width", 1),
        ("beam_width", 257),
        ("max_copy", 0),
        ("random_seed", -1),
        ("random_seed", 2**63),
    ],
)
def test_out_of_range_values_are_refused_by_name(name: str, value: float) -> None:
    option = "--" + name.replace("_", "-")
    with pytest.raises(UsageError, match=f"{option} .* is out of range: give "):
        SamplingOptions(**{name: value})  # type: ignore[arg-type]


def test_beam_depth_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match="--beam-depth 0 is out of range: give "):
        SamplingOptions(beam_width=2, beam_depth=0)


def test_an_empty_until_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--until .* empty"):
        SamplingOptions(until="")


@pytest.mark.parametrize(
    ("options", "ineffective"),
    [
        ({"greedy": True, "top_k": 3}, "--top-k"),
        ({"greedy": True, "top_p": 0.5}, "--top-p"),
        ({"greedy": True, "min_p": 0.5}, "--min-p"),
        ({"greedy": True, "temperature": 2.0}, "--temperature"),
        ({"beam_width": 3, "top_k": 3}, "--top-k"),
        ({"beam_width": 3, "top_p": 0.5}, "--top-p"),
        ({"beam_width": 3, "min_p": 0.5}, "--min-p"),
        ({"beam_width": 3, "repetition_penalty": 2.0}, "--repetition-penalty"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], ineffective: str) -> None:
    with pytest.raises(UsageError, match=f"{ineffective} has no .*: leave out {ineffective}") as refused:
        SamplingOptions(**options)
    assert ("--greedy" if "greedy" in options else "--beam-width") in str(refused.value)


def test_beam_depth_without_beam_width_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--beam-depth .*: give --beam-width"):
        SamplingOptions(beam_depth=3)


@pytest.mark.parametrize(
    ("chosen", "top_p", "lexicon"),
    [
        ({}, 0.9, True),
        ({"temperature": 0.8, "max_copy": 40}, 0.9, True),
        ({"lexicon": False}, 0.9, False),
        # A choice that does the same replaces the default, one that excludes it switches it off.
        ({"top_k": 3}, 1.0, True),
        ({"top_k": None}, 1.0, True),
        ({"top_p": 0.5}, 0.5, True),
        ({"min_p": 0.1}, 1.0, True),
        ({"greedy": True}, 1.0, True),
        ({"beam_width": 3}, 1.0, False),
    ],
)
def test_defaults_of_a_model_give_way_to_what_is_chosen(
    chosen: dict[str, Any], top_p: float, lexicon: bool
) -> None:
    options = with_defaults(chosen, {"top_p": 0.9, "lexicon": True})
    assert (options.top_p, options.lexicon) == (top_p, lexicon)
    assert options == SamplingOptions(**{"top_p": top_p, "lexicon": lexicon, **chosen})


def test_a_record_replaces_all_defaults() -> None:
    recorded = asdict(SamplingOptions(length=9))
    assert with_defaults(recorded, {"top_p": 0.9, "lexicon": True}) == SamplingOptions(length=9)


@pytest.mark.parametrize("hostile", [None, 7, [], {"top_p": "x", "lexicon": 1, "no": True, 3: 4}, {"top_p": None}])
def test_defaults_of_a_hostile_model_are_ignored(hostile: object) -> None:
    assert with_defaults({"length": 9}, hostile) == SamplingOptions(length=9)


@pytest.mark.parametrize(
    ("options", "k"),
    [({}, 3), ({"top_k": 0}, 0), ({"top_k": 7}, 7), ({"top_p": 0.9}, 0), ({"min_p": 0.1}, 0)],
)
def test_effective_top_k_defaults_to_the_tutorials_three(options: dict[str, Any], k: int) -> None:
    assert SamplingOptions(**options).effective_top_k == k
