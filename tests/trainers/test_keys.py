"""Declared keys: which values each type accepts, and what the error says."""

from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from trainers.config.keys import FileName, key, keys_of, read_group
from trainers.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    """A group."""

    rate: float = key("Learning rate. Of all groups.", above=0)
    share: float | Literal["auto"] | None = key("A share.", at_least=0, below=1)


class Facts(TypedDict):
    """Facts of a list."""

    root: str
    name: NotRequired[FileName]


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A group with a group in it."""

    count: int = key("Videos.", at_least=1)
    flag: bool = key("On or off.")
    inner: Inner
    betas: list[float] = key("Two numbers.", at_least=0, at_most=1, length=2)
    scales: list[float] = key("Shares.", above=0, at_most=1)
    side: Literal[1, 3] | None = key("A side.")
    options: dict[str, Any] = key("Anything.")
    facts: Facts = key("Facts.")
    lists: list[Facts] = key("Facts of several lists.")
    sets: dict[str, Facts] = key("Facts by name.", other_entries=True)


GOOD: dict[str, Any] = {
    "count": 4,
    "flag": False,
    "inner": {"rate": 1e-3, "share": "auto"},
    "betas": [0, 0.9],
    "scales": [1],
    "side": 3,
    "options": {"any": {"thing": 1}},
    "facts": {"root": "a"},
    "lists": [{"root": "a", "name": "b"}],
    "sets": {"one": {"root": "a", "else": 3}},
}


def test_values_become_a_group() -> None:
    found = read_group(Outer, GOOD)
    assert (found.count, found.inner, found.betas, found.side) == (4, Inner(1e-3, "auto"), [0, 0.9], 3)
    assert list(keys_of(Outer)) == ["count", "flag", "inner.rate", "inner.share", *list(GOOD)[3:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "count=0: must be a whole number of at least 1"),
        ({"count": True}, "count=true: must be a whole number of at least 1"),
        ({"count": 1.0}, "count=1.0: must be a whole number"),
        ({"flag": 1}, "flag=1: must be true or false"),
        ({"inner": 3}, "inner: must be a group of keys"),
        ({"inner": {1: 2}}, "unknown key inner.1"),
        ({"inner": {"rate": 0, "share": 0}}, "inner.rate=0: must be a number above 0"),
        ({"inner": {"rate": float("nan"), "share": 0}}, "inner.rate=nan: must be a number above 0"),
        ({"inner": {"rate": 1, "share": 1}}, "inner.share=1: must be a number from 0 to below 1, auto or null"),
        ({"inner": {"rate": 1}}, "the key inner.share is missing; it must be a number from 0"),
        ({"inner": {"rate": "???", "share": 0}}, r"inner.rate is not set: give inner.rate=... \(Learning rate\)"),
        ({"inner": {**GOOD["inner"], "ratte": 1}}, r"unknown key inner.ratte; did you mean inner.rate"),
        ({"betas": [0.9]}, "betas=.*: must be a list of 2 numbers from 0 to 1"),
        ({"betas": [0.9, "x"]}, "betas=.*: must be a list of 2 numbers from 0 to 1"),
        ({"scales": []}, "scales=.*: must be a list of numbers above 0, up to 1"),
        ({"side": 2}, "side=2: must be one of 1, 3 or null"),
        ({"side": 1.0}, "side=1.0: must be one of 1, 3 or null"),
        ({"options": None}, "options=null: must be a group of keys"),
        ({"count": 2**63}, "count=9223372036854775808: must be a whole number of at least 1"),
        ({"facts": {}}, "the key facts.root is missing; it must be text"),
        ({"facts": {"root": 3}}, "facts.root=3: must be text"),
        ({"facts": {"root": "a\0b"}}, r"facts.root='a\\x00b': must be text"),
        ({"facts": {"root": "a", "rot": "b"}}, "unknown key facts.rot; did you mean root"),
        ({"lists": [{"root": "a"}, 3]}, r"lists=.*: must be a list of groups of keys"),
        ({"lists": [{"root": "a"}, {"root": None}]}, r"lists\[1\].root=null: must be text"),
        ({"lists": [{"root": "a", "name": "../b"}]}, r"lists\[0\].name=../b: must be text for file names"),
        ({"sets": {"one": {"root": 1}}}, "sets.one.root=1: must be text"),
        ({"sets": {"one": 1}}, "sets=.*: must be a group of keys"),
    ],
)
def test_a_wrong_value_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        read_group(Outer, {**GOOD, **change})
