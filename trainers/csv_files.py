"""CSV files that a spreadsheet opens without running anything.

A spreadsheet takes a cell that starts with `=`, `+`, `-`, `@` or a control character for a formula, so a class or a
file named `=HYPERLINK(...)` would be a link in a table of predictions. `write_csv` puts an apostrophe before such
text, the spreadsheets' own mark for text, and `read_csv` removes it: names survive a round trip. Numbers stay as they
are.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from trainers.errors import ConfigError
from trainers.files import atomic_path

# Apostrophes before a formula get one more, so that removing one gives the text back. The last four are full-width.
_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def write_csv(
    file: Path | TextIO, header: Sequence[str], rows: Iterable[Sequence[object]], lineterminator: str = "\r\n"
) -> None:
    """Write a table with one row per line; text that could run as a formula is marked.

    Args:
        file: a path, which gets the whole table or stays as it is; or an open text file.

    Raises:
        OSError: if it cannot be written.
    """
    if isinstance(file, Path):
        with (
            atomic_path(file) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as opened,
        ):
            write_csv(opened, header, rows, lineterminator)
        return
    writer = csv.writer(file, lineterminator=lineterminator)
    writer.writerow(header)
    writer.writerows([harmless(cell) for cell in row] for row in rows)


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the cells by column of every row of a file that `write_csv` wrote.

    Cells that a line lacks are missing.

    Raises:
        ConfigError: if it cannot be read as CSV.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            for row in reader:
                if row:
                    yield reader.line_num, dict(zip(header, map(original, row), strict=False))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV: {error}") from error


def harmless(cell: object) -> object:
    """Return a cell that no spreadsheet takes for a formula."""
    is_formula = isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def original(text: str) -> str:
    """Return the text that `harmless` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
