"""Text files from outside: lines, whole numbers and JSON, with every defect as a ValueError."""

import json
import re
from pathlib import Path
from typing import Any

MAX_BYTES = 512 << 20  # of a list; those of a million videos have about 60 MB
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")


def read_text_file(path: str | Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8 text, or larger than `MAX_BYTES`.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES >> 20} MB, too large for a list")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def split_lines(text: str) -> list[str]:
    """Split text at the line ends of Unix, Windows and old Macs.

    Not `str.splitlines`, which also splits at rare characters that a file name may contain.
    """
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def whole_number(text: str) -> int:
    """Return a whole number; other than `int`, refuse underscores and the digits of other scripts.

    Raises:
        ValueError: the text is not one.
    """
    if not _WHOLE_NUMBER.fullmatch(text.strip()):
        raise ValueError("is not an integer")
    return int(text)


def parse_json(text: str, **options: Any) -> Any:
    """Return the content of JSON; the options are those of `json.loads`.

    Raises:
        ValueError: it is not JSON (`json.JSONDecodeError`), or its lists are nested too deeply.
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
