"""The paper's four tables from any number of runs: which result belongs to which row, means, Markdown, LaTeX, CSV.

Of several results for one cell (protocol, data set, trainer, names, start, seed), the newest counts. Zero-shot: mean
and standard deviation over the splits of a data set. Few-shot: the best validation, with mean and deviation over
seeds. Base-to-novel: means over the lists 1 to 3, and their harmonic mean. (LLM): rephrased names; (P): trained from a
checkpoint. A result that does not reproduce the paper's row has a separate row that names the difference: this
project's rephrased names, other names, another training set, a model from random weights, choices on held-out videos,
averaged weights.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from trainers.csv_files import write_csv
from trainers.errors import ConfigError
from trainers.metrics import harmonic_mean, mean_and_std
from trainers.reporting.published_numbers import DATASETS, PUBLISHED
from trainers.reporting.read_results import is_averaged, read_document

TITLES = {
    "zero_shot": "Zero-shot, top-1 in percent",
    "few_shot": "Few-shot, top-1 in percent, K videos per class",
    "base2novel": "Base to novel, top-1 in percent",
    "fully_supervised": "Fully supervised, percent",
}
# The paper's columns; those of other data sets follow them.
COLUMNS: dict[str, list[tuple[str, str]]] = {
    "zero_shot": [(dataset, "top-1") for dataset in ("hmdb51", "ucf101", "k600")],
    "few_shot": [(dataset, f"K={shot}") for dataset in ("hmdb51", "ucf101", "ssv2") for shot in (2, 4, 8, 16)],
    "base2novel": [(d, measure) for d in ("k400", "hmdb51", "ucf101", "ssv2") for measure in ("base", "novel", "HM")],
    "fully_supervised": [("k400", "top-1"), ("k400", "top-5")],
}
# The data sets of the protocols' published configurations.
PUBLISHED_DATA = {
    "zero_shot": ("k400", "k400_tiny"),
    "few_shot": ("hmdb51", "ucf101", "ssv2"),
    "base2novel": ("k400", "hmdb51", "ucf101", "ssv2"),
    "fully_supervised": ("k400",),
}
TRAINERS = {"tc_clip": "TC-CLIP", "vifi_clip": "ViFi-CLIP", "vanilla_clip": "CLIP"}


@dataclass(frozen=True)
class Cell:
    """A number of a table: the mean, the standard deviation if several values were averaged, and their count."""

    mean: float
    std: float | None
    count: int

    def text(self) -> str:
        """Return it as in the tables."""
        return f"{self.mean:.1f}" if self.std is None else f"{self.mean:.1f} +- {self.std:.1f}"


@dataclass(frozen=True, order=True)
class RowName:
    """A row: trainer, variant ("", LLM, P), differences from the paper's row, weight of the ensemble."""

    trainer: str
    variant: str
    differs: tuple[str, ...] = ()
    wise_ft: float | None = None

    def text(self) -> str:
        """Return it as in the tables."""
        words = TRAINERS.get(self.trainer, self.trainer)
        notes = ", ".join(filter(None, (self.variant, *self.differs)))
        words += f" ({notes})" if notes else ""
        return words if self.wise_ft is None else f"{words}, wise_ft={self.wise_ft:g}"


@dataclass(frozen=True)
class Result:
    """One accuracy of one run on one data set; `number` distinguishes the members of a mean (split, list, seed)."""

    table: str
    row: RowName
    dataset: str
    measure: str
    number: str
    value: float
    source: str


Cells = dict[tuple[RowName, str, str], Cell]


def collect_results(folders: Iterable[Path]) -> tuple[list[Result], list[str]]:
    """Return the newest of each result below the folders, and notes on files that were left out.

    Entries of a ledger know when they were finished; of other files the time of the file counts.
    """
    paths = sorted({path for folder in folders for path in folder.rglob("results*.json")}, key=_age)
    newest: dict[tuple[str, RowName, str, str, str], Result] = {}
    notes = []
    for path in paths:
        try:
            content = read_document(path)
            results = _results_of(path, content)
            misfit = _misfit(content)
        except (ConfigError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = repr(error).replace(f"{path}: ", "")
            notes.append(f"{path}: left out, not a result of this program ({reason})")
            continue
        if misfit is not None:
            notes.append(f"{path}: left out, {misfit}")
            continue
        for result in results:
            key = (result.table, result.row, result.dataset, result.measure, result.number)
            if key in newest and newest[key].source != result.source:
                notes.append(f"{newest[key].source}: replaced by the newer {result.source}")
            newest[key] = result
    return list(newest.values()), list(dict.fromkeys(notes))


def _age(path: Path) -> tuple[float, str]:
    try:
        finished = datetime.fromisoformat(read_document(path)["finished"]).timestamp()
    except (ConfigError, KeyError, ValueError, TypeError):  # no entry, or damaged, which is noted when it is read
        finished = path.stat().st_mtime
    return finished, str(path)


def _results_of(path: Path, content: dict[str, Any]) -> list[Result]:
    """Return the results of one file."""
    table = content["protocol"]
    dataset = _dataset_of(table, content["data"])
    training = content["training"] or {}
    variant, differs = _variant_of(content, dataset)
    seed = training.get("seed", content["seed"])
    found = []

    def add(entry: dict[str, Any], dataset: str, measure: str, number: object, value: float | None) -> None:
        if value is not None:
            own = (*differs, "averaged weights") if is_averaged(entry) else differs
            row = RowName(content["trainer"], variant, own, entry["wise_ft"])
            found.append(Result(table, row, dataset, measure, str(number), value, str(path)))

    for entry in content["results"]:
        part = entry["part"]
        if table == "zero_shot" and part == "test":
            add(entry, entry["group"], "top-1", f"{entry['name']} of seed {seed}", entry["top1"])
        elif table == "few_shot" and part != "held_out":
            shot = training.get("shot")
            if shot is not None:
                add(entry, dataset, f"K={shot}", seed, entry["top1"])
        elif table == "base2novel" and part != "held_out":
            base = training.get("base")
            if base is not None:
                add(entry, dataset, "base" if part == "val" else "novel", f"{base} of seed {seed}", entry["top1"])
        elif table == "fully_supervised" and part == "test":
            add(entry, dataset, "top-1", seed, entry["top1"])
            add(entry, dataset, "top-5", seed, entry["top5"])
    return found


def _dataset_of(table: str, data: str) -> str:
    return data.removeprefix(f"{table}_").removesuffix("_llm")


def _variant_of(content: dict[str, Any], dataset: str) -> tuple[str, tuple[str, ...]]:
    """Return the paper's variant that a result belongs to, and its differences from the paper's row."""
    table, data, training = content["protocol"], content["data"], content["training"] or {}
    rephrased = data.endswith("_llm") or content.get("labels") in ("llm", "froster")
    variant = "LLM" if rephrased else "P" if training.get("resume") else ""
    differs = []
    if content.get("labels") == "corrected":
        differs.append("HMDB-51's labels corrected")
    if rephrased and content.get("labels") != "froster":
        differs.append("this project's names")
    if dataset in PUBLISHED_DATA[table] and "labels" in content and content["labels"] is None:
        differs.append("other names")
    if dataset in PUBLISHED_DATA[table] and content.get("clip_weights", "") is None:
        differs.append("from random weights")
    if rephrased and training.get("resume"):
        differs.append("P")
    if any(choice["on"]["part"] == "held_out" for choice in content.get("choices", ())):
        differs.append("chosen on held-out videos")
    source = _dataset_of(table, training.get("data", data))
    if table == "zero_shot" and (source != dataset or source == "k400_tiny"):
        differs.append(f"trained on {source}")
    return variant, tuple(differs)


def _misfit(content: dict[str, Any]) -> str | None:
    """Return why a test does not measure the training that its table is about, or None.

    The zero-shot table tests any weights.
    """
    table, training = content["protocol"], content["training"] or {}
    trained, tested = (name.removesuffix("_llm") for name in (training.get("data", ""), content["data"]))
    if table == "zero_shot" or not trained or trained == tested:
        return None
    return f"{tested} is tested, but the weights were trained by {trained}"


def make_cells(results: Sequence[Result], table: str) -> Cells:
    """Average the results of a table's cells."""
    groups: dict[tuple[RowName, str, str], list[float]] = {}
    for result in results:
        if result.table == table:
            groups.setdefault((result.row, result.dataset, result.measure), []).append(result.value)
    cells: Cells = {}
    for key, values in groups.items():
        mean, std = mean_and_std(values)
        shows_std = len(values) > 1 and table != "base2novel"
        cells[key] = Cell(mean, std if shows_std else None, len(values))
    if table == "base2novel":
        for row, dataset in {(row, dataset) for row, dataset, _ in cells}:
            base, novel = (cells.get((row, dataset, measure)) for measure in ("base", "novel"))
            if base is not None and novel is not None:
                mean = harmonic_mean(base.mean, novel.mean)
                cells[row, dataset, "HM"] = Cell(mean, None, min(base.count, novel.count))
    return cells


def columns_of(table: str, cells: Cells) -> list[tuple[str, str]]:
    """Return the columns of a table: the paper's, then those of other data sets."""
    others = {(dataset, measure) for _, dataset, measure in cells} - set(COLUMNS[table])
    order = {"base": 0, "novel": 1, "HM": 2, "top-1": 3, "top-5": 4}

    def order_of(column: tuple[str, str]) -> tuple[str, int]:
        dataset, measure = column
        return dataset, int(measure.removeprefix("K=")) if measure.startswith("K=") else order[measure]

    return COLUMNS[table] + sorted(others, key=order_of)


def rows_of(table: str, cells: Cells) -> list[tuple[str, dict[tuple[str, str], str]]]:
    """Return the rows of a table, the paper's before those of runs of the same variant."""
    rows = []
    of_runs = sorted(
        {row for row, _, _ in cells}, key=lambda row: (row.variant, row.trainer, row.differs, row.wise_ft or 2)
    )
    for variant in ("", "LLM", "P"):
        paper = {
            (dataset, measure): Cell(*value, 0).text()
            for (of, row, dataset, measure), value in PUBLISHED.items()
            if (of, row) == (table, variant)
        }
        if paper:
            rows.append((f"{RowName('tc_clip', variant).text()}: the paper's", paper))
        for row in (row for row in of_runs if row.variant == variant):
            texts = {(dataset, measure): cell.text() for (of, dataset, measure), cell in cells.items() if of == row}
            rows.append((f"{row.text()}: ours", texts))
    return rows


def notes_of(table: str, cells: Cells) -> list[str]:
    """Return the cells that are means of fewer lists or splits than the protocol has."""
    if table not in ("zero_shot", "base2novel"):
        return []
    return [
        f"{row.text()}, {DATASETS.get(dataset, dataset)}, {measure}: of {cell.count} of 3"
        for (row, dataset, measure), cell in sorted(cells.items(), key=lambda item: str(item[0]))
        if cell.count < 3 and (table == "base2novel" or dataset in DATASETS)
    ]


def markdown(table: str, cells: Cells) -> str:
    """Return a table in Markdown."""
    columns = columns_of(table, cells)
    head = [f"{DATASETS.get(dataset, dataset)} {measure}" for dataset, measure in columns]
    lines = [f"### {TITLES[table]}", "", f"| | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    for name, texts in rows_of(table, cells):
        lines.append(f"| {name} | {' | '.join(texts.get(column, '') for column in columns)} |")
    notes = notes_of(table, cells)
    if notes:
        lines += ["", "Incomplete means: " + "; ".join(notes) + "."]
    return "\n".join(lines) + "\n"


def latex(table: str, cells: Cells) -> str:
    """Return a table in LaTeX (needs no package)."""
    columns = columns_of(table, cells)
    groups: list[tuple[str, int]] = []
    for dataset, _ in columns:
        if groups and groups[-1][0] == dataset:
            groups[-1] = (dataset, groups[-1][1] + 1)
        else:
            groups.append((dataset, 1))
    head = " & ".join(f"\\multicolumn{{{n}}}{{c}}{{{_tex(DATASETS.get(name, name))}}}" for name, n in groups)
    lines = [
        f"% {TITLES[table]}",
        f"\\begin{{tabular}}{{l{'c' * len(columns)}}}",
        "\\hline",
        f" & {head} \\\\",
        " & " + " & ".join(_tex(measure) for _, measure in columns) + " \\\\",
        "\\hline",
    ]
    for name, texts in rows_of(table, cells):
        values = (texts.get(column, "").replace("+-", "$\\pm$") for column in columns)
        lines.append(f"{_tex(name)} & {' & '.join(values)} \\\\")
    return "\n".join([*lines, "\\hline", "\\end{tabular}"]) + "\n"


def _tex(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, f"\\{sign}")
    return text


def write_table(path: Path, table: str, cells: Cells) -> None:
    """Write every number of a table, the paper's and those of runs, one per line with all digits."""
    published = (
        ["paper", RowName("tc_clip", variant).text(), dataset, measure, mean, std, ""]
        for (of, variant, dataset, measure), (mean, std) in PUBLISHED.items()
        if of == table
    )
    runs = (
        ["ours", row.text(), dataset, measure, cell.mean, cell.std, cell.count]
        for (row, dataset, measure), cell in sorted(cells.items(), key=lambda item: str(item[0]))
    )
    write_csv(path, ["source", "row", "dataset", "measure", "mean", "std", "runs"], chain(published, runs))
