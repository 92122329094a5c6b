"""CSV files: a spreadsheet runs nothing, and every text survives a round trip."""

import csv
import os
from pathlib import Path

import pytest

from trainers.csv_files import harmless, original, read_csv, write_csv
from trainers.errors import ConfigError

FORMULAS = ['=HYPERLINK("http://x")', "+1+1", "-2+3", "@sum", "\tx", "\rx", "=", "＝1", "'=1", "''+1", "-"]
OTHERS = ["", "a = b", "'tis", "-0.5", "+1e-3", ".5", "red ring", "数", "a,b", 'say "x"', "two\nlines"]


@pytest.mark.parametrize("text", FORMULAS + OTHERS)
def test_text_survives_a_round_trip(text: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", ["name", "number"], [[text, -1.5]])
    (row,) = (row for _, row in read_csv(tmp_path / "x.csv"))
    assert row == {"name": text, "number": "-1.5"} and original(str(harmless(text))) == text
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        _, (cell, _) = csv.reader(file)
    assert cell == (f"'{text}" if text in FORMULAS else text)


def test_a_file_that_is_not_csv_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"name\n\xff\xfe")
    with pytest.raises(ConfigError, match="x.csv: cannot be read as CSV"):
        list(read_csv(tmp_path / "x.csv"))


def test_a_failed_write_leaves_the_old_table(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    write_csv(path, ["a"], [[1]])
    with pytest.raises(ZeroDivisionError):
        write_csv(path, ["a"], ([1 / n] for n in (1, 0)))
    assert path.read_text().split() == ["a", "1"] and list(tmp_path.iterdir()) == [path]


def test_file_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["video"], [[os.fsdecode(b"\xe9.mp4")], ["\u89c6.mp4"]])
    assert (tmp_path / "a.csv").read_bytes() == "video\r\n\\udce9.mp4\r\n\u89c6.mp4\r\n".encode()
