"""Writes to configs/local.yaml, the file for the paths of one machine."""

import json
import re
from pathlib import Path

from trainers.commands.data.listing import DataError
from trainers.files import atomic_path

HEADER = (
    "# Paths of this machine; git ignores this file. It overrides every other configuration but the command line.\n"
)


def set_local(path: Path, key: str, value: str) -> None:
    """Set a key at the top level of a local configuration; everything else stays, comments included.

    Raises:
        DataError: the file cannot be written.
    """
    line = f"{key}: {json.dumps(value, ensure_ascii=False)}"  # a JSON text is a YAML text
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8") if path.exists() else HEADER
        pattern = re.compile(rf"^{re.escape(key)}:.*$", re.MULTILINE)
        if pattern.search(text):
            text = pattern.sub(lambda _: line, text, count=1)
        else:
            text = text.rstrip("\n") + f"\n{line}\n"
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
