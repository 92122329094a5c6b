"""Reads the documents (fenced blocks, prose, commands of shell blocks) and composes configurations, each once."""

import copy
import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "configs"
DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("labels/**/*.md")],
)
# The overrides that a protocol requires.
NEEDED = {"few_shot": ["shot=16"], "base2novel": ["base=1"]}


@dataclass(frozen=True)
class Block:
    """A fenced block: its position (`README.md:12`), its language, its text."""

    position: str
    language: str
    text: str


def name_of(document: Path) -> str:
    """Return a document's path inside the repository."""
    return document.relative_to(REPOSITORY).as_posix()


def blocks_of(document: Path) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
    found: list[Block] = []
    name = name_of(document)
    lines = document.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines, start=1):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = number
            continue
        language = lines[start - 1].strip().removeprefix("```")
        found.append(Block(f"{name}:{start}", language, "\n".join(lines[start : number - 1])))
        start = None
    assert start is None, f"{name}:{start}: the block has no end"
    return found


@functools.cache
def prose_of(document: Path) -> str:
    """Return a document without its fenced blocks; line numbers stay the same."""
    kept, inside = [], False
    for line in document.read_text(encoding="utf-8").splitlines():
        fence = line.lstrip().startswith("```")
        kept.append("" if inside or fence else line)
        inside = inside != fence
    return "\n".join(kept)


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]


def statements(text: str) -> list[str]:
    """Return a script's statements, without comments, with continued lines joined."""
    joined = text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


def commands_of(lines: list[str], variables: dict[str, str] | None = None) -> Iterator[list[str]]:
    """Yield the words of every command that a script runs; `for` loops are unrolled."""
    variables = dict(variables or {})
    index = 0
    while index < len(lines):
        line = lines[index]
        loop = re.fullmatch(r"for (\w+) in ([\w ]+); do", line)
        if loop is None:
            yield shlex.split(substitute(line, variables), comments=True)
            index += 1
            continue
        depth, end = 1, index
        while depth:
            end += 1
            assert end < len(lines), f"no `done` for: {line}"
            depth += lines[end].startswith("for ")
            depth -= lines[end] == "done"
        for value in loop[2].split():
            yield from commands_of(lines[index + 1 : end], {**variables, loop[1]: value})
        index = end + 1


def substitute(line: str, variables: dict[str, str]) -> str:
    """Return a line with `$name` and `${name}` replaced; an unknown variable is an AssertionError."""

    def value(match: re.Match) -> str:
        name = match[1] or match[2]
        assert name in variables, f"${name} is not set: {line}"
        return variables[name]

    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, line)


def compose_config(protocol: str, *overrides: str, folder: Path = CONFIGS) -> DictConfig:
    """Compose a configuration as main.py does; the same arguments are composed once for all tests."""
    return copy.deepcopy(_composed(folder, protocol, overrides))


@functools.cache
def _composed(folder: Path, protocol: str, overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose(protocol, overrides=list(overrides))
