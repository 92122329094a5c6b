"""Reading the documents: their fenced blocks, their prose, and the commands of their shell blocks."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "configs"
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("labels/*.md")])
# What a protocol cannot be composed without.
NEEDED = {"few_shot": ["shot=16"], "base2novel": ["base=1"]}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language, its text."""

    place: str
    language: str
    text: str


def blocks_of(document: Path) -> list[Block]:
    found: list[Block] = []
    lines = document.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines, start=1):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = number
            continue
        language = lines[start - 1].strip().removeprefix("```")
        found.append(Block(f"{document.name}:{start}", language, "\n".join(lines[start : number - 1])))
        start = None
    assert start is None, f"{document.name}:{start}: the block has no end"
    return found


def prose_of(document: Path) -> str:
    """Return a document without its fenced blocks, line numbers kept."""
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
    """Yield the words of every command that a script runs; `for` loops are run."""
    variables = dict(variables or {})
    place = 0
    while place < len(lines):
        line = lines[place]
        loop = re.fullmatch(r"for (\w+) in ([\w ]+); do", line)
        if loop is None:
            yield shlex.split(substitute(line, variables), comments=True)
            place += 1
            continue
        depth, end = 1, place
        while depth:
            end += 1
            assert end < len(lines), f"no `done` for: {line}"
            depth += lines[end].startswith("for ")
            depth -= lines[end] == "done"
        for value in loop[2].split():
            yield from commands_of(lines[place + 1 : end], {**variables, loop[1]: value})
        place = end + 1


def substitute(line: str, variables: dict[str, str]) -> str:
    def value(match: re.Match) -> str:
        name = match[1] or match[2]
        assert name in variables, f"${name} is not set: {line}"
        return variables[name]

    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, line)
