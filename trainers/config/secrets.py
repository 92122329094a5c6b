"""Removes secrets from configurations, command lines and messages before a run writes them."""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "(hidden)"
# A name ends with such a word. Not in the plural: `num_context_tokens` is none.
_WORDS = r"(?:api_?key|access_?key(?:_?id)?|private_?key|secret(?:_?key)?|token|passw(?:or)?d|passphrase|credentials?)"
_NAME = re.compile(rf"(?:^|[^a-z]){_WORDS}$", re.IGNORECASE)
_ASSIGNED = re.compile(rf"((?:^|[\s\"'?&;,+~.])[\w.-]*{_WORDS})(\s*[=:]\s*)([^\s\"'&;,]+)", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]+@", re.IGNORECASE)
_MIN_LENGTH = 8  # a shorter value of a variable would be found inside harmless words


def is_secret_name(name: str) -> bool:
    """Return whether a key or an environment variable of this name holds a secret."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1_\2", name)
    return bool(_NAME.search(spaced))


def hide_secrets(text: str) -> str:
    """Return a text without the values of `password=...`, `user:password@` in addresses, and of secret variables."""
    for value in _secret_values():
        text = text.replace(value, HIDDEN)
    text = _IN_ADDRESS.sub(rf"\1{HIDDEN}@", text)
    return _ASSIGNED.sub(_hide_assigned, text)


def hide_in_config(value: Any, name: str = "") -> Any:
    """Return a configuration with its secrets hidden, by key and by value."""
    if isinstance(value, Mapping):
        return {key: hide_in_config(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [hide_in_config(item, name) for item in value]
    if isinstance(value, str):
        return HIDDEN if is_secret_name(name) else hide_secrets(value)
    return value


def _hide_assigned(found: re.Match) -> str:
    name = found[1].strip(" \"'?&;,+~.").rpartition(".")[2]
    return f"{found[1]}{found[2]}{HIDDEN}" if is_secret_name(name) else found[0]


def _secret_values() -> list[str]:
    """Return the values of this process's secret variables, the longest first."""
    values = {value for name, value in os.environ.items() if is_secret_name(name) and len(value) >= _MIN_LENGTH}
    return sorted(values, key=len, reverse=True)
