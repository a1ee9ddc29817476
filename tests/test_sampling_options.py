"""The sampling options: ranges, and combinations that are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from grimmgen.errors import UsageError
from grimmgen.sampling.options import SamplingOptions


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
    ("options", "k"),
    [({}, 3), ({"top_k": 0}, 0), ({"top_k": 7}, 7), ({"top_p": 0.9}, 0), ({"min_p": 0.1}, 0)],
)
def test_effective_top_k_defaults_to_the_tutorials_three(options: dict[str, Any], k: int) -> None:
    assert SamplingOptions(**options).effective_top_k == k
