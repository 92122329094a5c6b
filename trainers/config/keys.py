"""How a configuration key is declared: its type, its limits and its meaning, once, as a field of a frozen dataclass.

A group of keys is a dataclass. Each of its fields is a key (`key(...)`) or, without a value, another group. The check
of a key follows from its type: `int | None` also accepts null, `Literal` accepts its choices, and so on. A key that
holds mappings, one or several (`Facts`, `list[Facts]`, `dict[str, Facts]`), has a `TypedDict` as type: its entries are
checked in the same way.
"""

import difflib
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NewType,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from trainers.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Group = TypeVar("Group", bound="DataclassInstance")
FileName = NewType("FileName", str)  # text that becomes part of the name of a file
MAX_FILE_NAME = 100  # characters
MAX_WHOLE = 2**63 - 1  # of what computes with the number, 64 bits


@dataclass(frozen=True)
class Limits:
    """Range of a number, or of the numbers of a list, and length of a list."""

    at_least: float
    above: float
    at_most: float
    below: float
    length: int | None

    def contain(self, value: float) -> bool:
        """Return whether a number is in the range."""
        return self.at_least <= value <= self.at_most and self.above < value < self.below

    def __str__(self) -> str:
        """Return the range in words, with a space before it; empty if there is none."""
        high = f"{self.at_most:g}" if self.at_most < math.inf else f"below {self.below:g}"
        if self.at_least > -math.inf and high != "below inf":
            return f" from {self.at_least:g} to {high}"
        words = [f"of at least {self.at_least:g}"] if self.at_least > -math.inf else []
        words += [f"above {self.above:g}"] if self.above > -math.inf else []
        words += [f"up to {high}"] if high != "below inf" else []
        return "".join(f" {word}" for word in [", ".join(words)] if word)


@dataclass(frozen=True)
class Check:
    """Which values are accepted: a test, and the same in words."""

    accepts: Callable[[Any], bool]
    expected: str


@dataclass(frozen=True)
class Entries:
    """Checks of the entries of the mappings that a key holds.

    `required` must be there; `others`: entries without a check can be there too. `by_name`: the key's value is itself a
    mapping, of names to these mappings.
    """

    checks: Mapping[str, Check]
    required: frozenset[str]
    others: bool
    by_name: bool


@dataclass(frozen=True)
class Key:
    """Meaning and check of a configuration key; `entries` is None if it holds no mappings with checks."""

    doc: str
    check: Check
    entries: Entries | None = None


def key(
    doc: str,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
    length: int | None = None,
    other_entries: bool = False,
) -> Any:
    """Declare a key.

    Args:
        doc: meaning and unit, as CONFIG.md shows them.
        at_least, above, at_most, below: range of a number.
        length: of a list; None: any, but a list of numbers is not empty.
        other_entries: whether a mapping can have entries that its type does not declare.
    """
    limits = Limits(at_least, above, at_most, below, length)
    return field(metadata={"doc": doc, "limits": limits, "other_entries": other_entries})


def keys_of(group: "type[DataclassInstance]", prefix: str = "") -> dict[str, Key]:
    """Return all keys of a group and of the groups in it, by their dotted names, in order."""
    found: dict[str, Key] = {}
    hints = get_type_hints(group)
    for item in fields(group):
        name, hint = prefix + item.name, hints[item.name]
        if _is_group(hint):
            found |= keys_of(hint, f"{name}.")
        else:
            found[name] = Key(item.metadata["doc"], _check_of(hint, item.metadata["limits"]), _entries_of(hint, item))
    return found


def read_group(group: type[Group], values: Mapping[str, Any]) -> Group:
    """Check a resolved mapping, key by key, and return it as a group.

    Raises:
        ConfigError: naming the first wrong key, its value and which values are accepted.
    """
    return _read(group, values, "", keys_of(group))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the closest known words, or nothing if none is close."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _is_group(hint: object) -> "TypeGuard[type[DataclassInstance]]":
    return is_dataclass(hint)


def _read(group: type[Group], values: Mapping[str, Any], prefix: str, known: Mapping[str, Key]) -> Group:
    hints = get_type_hints(group)
    for name in values:
        if name not in hints:
            raise ConfigError(f"unknown key {prefix}{name}{did_you_mean(prefix + str(name), known)}")
    read: dict[str, Any] = {}
    for name, hint in hints.items():
        if not _is_group(hint):
            read[name] = _checked(prefix + name, values, name, known[prefix + name])
        elif isinstance(values.get(name), Mapping):
            read[name] = _read(hint, values[name], f"{prefix}{name}.", known)
        else:
            raise ConfigError(f"{prefix}{name}: must be a group of keys")
    return group(**read)


def _checked(dotted: str, values: Mapping[str, Any], name: str, declared: Key) -> Any:
    if name not in values:
        raise ConfigError(f"the key {dotted} is missing; it must be {declared.check.expected}")
    value = values[name]
    if value == "???":
        raise ConfigError(f"{dotted} is not set: give {dotted}=... ({declared.doc.split('. ')[0].rstrip('.')})")
    if not declared.check.accepts(value):
        raise ConfigError(f"{dotted}={_show(value)}: must be {declared.check.expected}")
    if declared.entries is not None:
        _check_entries(dotted, value, declared.entries)
    return value


def _entries_of(hint: Any, item: Field[Any]) -> Entries | None:
    """Return the checks of the entries of the mappings that a type holds."""
    held = hint if is_typeddict(hint) else next((part for part in get_args(hint) if is_typeddict(part)), None)
    if held is None:
        return None
    limits, others = item.metadata["limits"], item.metadata["other_entries"]
    checks = {name: _check_of(part, limits) for name, part in get_type_hints(held).items()}
    return Entries(checks, held.__required_keys__, others, by_name=get_origin(hint) is dict)


def _check_entries(dotted: str, value: Any, entries: Entries) -> None:
    """Check the entries of all mappings in the value of a key."""
    if isinstance(value, list):
        mappings = {f"{dotted}[{number}]": item for number, item in enumerate(value)}
    else:
        mappings = {f"{dotted}.{name}": item for name, item in value.items()} if entries.by_name else {dotted: value}
    for location, mapping in mappings.items():
        for name in sorted(entries.required - mapping.keys()):
            raise ConfigError(f"the key {location}.{name} is missing; it must be {entries.checks[name].expected}")
        for name, entry in mapping.items():
            check = entries.checks.get(name)
            if check is None and not entries.others:
                raise ConfigError(f"unknown key {location}.{name}{did_you_mean(str(name), entries.checks)}")
            if check is not None and not check.accepts(entry):
                raise ConfigError(f"{location}.{name}={_show(entry)}: must be {check.expected}")


def _check_of(hint: Any, limits: Limits) -> Check:
    """Return the check of a type with limits.

    Raises:
        KeyError: the type is not among those that keys have.
    """
    kind = get_origin(hint)
    if kind in (Union, UnionType):
        options = [_check_of(option, limits) for option in get_args(hint)]
        words = [option.expected for option in options]
        return Check(
            lambda value: any(option.accepts(value) for option in options), f"{', '.join(words[:-1])} or {words[-1]}"
        )
    if kind is Literal:
        choices = get_args(hint)
        names = ", ".join(str(choice) for choice in choices)
        return Check(
            lambda value: any(type(value) is type(choice) and value == choice for choice in choices),
            names if len(choices) == 1 else f"one of {names}",
        )
    if kind is list:
        (item_type,) = get_args(hint)
        item = _check_of(item_type, limits)
        shortest = 0 if item.expected == _GROUP.expected else 1
        count = "" if limits.length is None else f"{limits.length} "
        return Check(
            lambda value: (
                isinstance(value, list)
                and (len(value) >= shortest if limits.length is None else len(value) == limits.length)
                and all(item.accepts(entry) for entry in value)
            ),
            f"a list of {count}"
            + item.expected.removeprefix("a ").replace("number", "numbers").replace("group", "groups"),
        )
    if kind is dict:
        item = _check_of(get_args(hint)[1], limits)
        return Check(
            lambda value: isinstance(value, dict) and all(item.accepts(entry) for entry in value.values()),
            _GROUP.expected if item.expected in ("anything", _GROUP.expected) else f"names with {item.expected}",
        )
    if is_typeddict(hint):
        return _GROUP
    return {
        Any: Check(lambda value: True, "anything"),
        bool: Check(lambda value: type(value) is bool, "true or false"),
        int: Check(
            lambda value: type(value) is int and abs(value) <= MAX_WHOLE and limits.contain(value),
            f"a whole number{limits}",
        ),
        float: Check(
            lambda value: type(value) in (int, float) and abs(value) <= sys.float_info.max and limits.contain(value),
            f"a number{limits}",
        ),
        str: Check(_is_line, "text"),
        FileName: Check(_is_file_name, f"text for file names (no / or \\, up to {MAX_FILE_NAME} characters)"),
        NoneType: Check(lambda value: value is None, "null"),
    }[hint]


_GROUP = Check(lambda value: isinstance(value, dict), "a group of keys")


def _is_line(value: object) -> bool:
    """Return whether a value is text of one line that a path or a log can hold."""
    return isinstance(value, str) and value.strip() != "" and not any(ord(letter) < 32 for letter in value)


def _is_file_name(value: object) -> bool:
    return (
        _is_line(value)
        and isinstance(value, str)
        and len(value.encode("utf-8", "replace")) <= MAX_FILE_NAME
        and not value.startswith(".")
        and not set(value) & set("/\\")
    )


def _show(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = text if text.isprintable() else repr(text)
    return "null" if value is None else text if len(text) <= 80 else f"{text[:77]}..."
