"""The tables of CONFIG.md: each key with its default, accepted values and meaning.

    python -m trainers.config.tables    # rewrites CONFIG.md

A line `<!-- keys: FILE, SECTION -->` of the document precedes each table. FILE is a configuration file, whose order and
defaults the table has; SECTION is the comment above the keys, if a file has sections. Checks and meanings come from
`trainers.config.settings`. The table after `<!-- published keys -->` has the keys of `trainers.config.published`.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from trainers.config.keys import keys_of
from trainers.config.published import KEYS, Dropped, Renamed
from trainers.config.settings import Settings
from trainers.paths import CONFIGS

DOCUMENT = CONFIGS.parent / "CONFIG.md"
_TABLE = re.compile(r"(<!-- keys: ([\w/]+\.yaml)(?:, ([^>]+?))? -->\n)(?:\|.*\n)*")
_PUBLISHED = re.compile(r"(<!-- published keys -->\n)(?:\|.*\n)*")


def with_tables(text: str) -> str:
    """Return a document with its tables written again."""
    text = _PUBLISHED.sub(lambda found: found[1] + _published_table(), text)
    return _TABLE.sub(lambda found: found[1] + _table(found[2], found[3]), text)


def keys_in_tables(text: str) -> list[str]:
    """Return the keys of a document's generated tables."""
    return [key for found in _TABLE.finditer(text) for key, _ in _defaults(found[2], found[3])]


def _table(file: str, section: str | None) -> str:
    declared = keys_of(Settings)
    rows = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for name, default in _defaults(file, section):
        values = declared[name].check.expected
        rows.append(f"| `{name}` | {default} | {values} | {declared[name].doc} |")
    return "\n".join(rows) + "\n"


def _published_table() -> str:
    rows = ["| published key | here |", "|---|---|"]
    for name, meaning in KEYS.items():
        if isinstance(meaning, Renamed):
            values = ", ".join(f"`{old}` is `{new}`" for old, new in meaning.values.items())
            text = f"`{meaning.key}`" + (f" ({values})" if values else "")
        else:
            text = f"dropped: {meaning.instead}" if isinstance(meaning, Dropped) else f"refused: {meaning.advice}"
        rows.append(f"| `{name}` | {text} |")
    return "\n".join(rows) + "\n"


def _defaults(file: str, section: str | None) -> Iterator[tuple[str, str]]:
    """Yield the keys of a file, or of one of its sections, with their defaults as YAML."""
    path = Path(file)
    prefix = "" if path.parent.name in ("", "labels", "loss") else f"{path.parent.name}."
    text = (CONFIGS / path).read_text(encoding="utf-8")
    if section is not None:
        _, found, rest = text.partition(f"\n# {section}\n")
        if not found:
            raise ValueError(f"configs/{file} has no section {section!r}")
        text = rest.split("\n\n")[0]
    yield from _leaves(yaml.safe_load(text), prefix, keys_of(Settings))


def _leaves(values: Mapping[str, Any], prefix: str, declared: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        key = prefix + name
        if key in declared:
            yield key, "" if isinstance(value, dict) else f"`{_as_yaml(value)}`"
        elif isinstance(value, dict):
            yield from _leaves(value, f"{key}.", declared)


def _as_yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
