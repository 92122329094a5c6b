"""The published rows as evaluations: which checkpoint, which command, which numbers, and why they can differ."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainers.commands.data.published import LISTS
from trainers.metrics import harmonic_mean, mean_and_std
from trainers.reporting.ledger import FORMAT
from trainers.reporting.paper_tables import COLUMNS, TRAINERS
from trainers.reporting.published_numbers import DATASETS, PUBLISHED
from trainers.reporting.read_results import read_document

TOLERANCE = 0.3  # percentage points
SUFFIXES = (".pth", ".pt", ".safetensors")
WISE_FT = 0.7  # of the published zero-shot rows
VARIANTS = {"tc_clip": ("", "LLM", "P"), "vifi_clip": ("",)}
_PUBLISHED_PRECISION = "fp16"


@dataclass(frozen=True)
class Unit:
    """One evaluation of one checkpoint: a protocol on a data set, `number` its shots or its base-to-novel list."""

    trainer: str
    protocol: str
    variant: str
    dataset: str
    number: int | None = None

    @property
    def checkpoint(self) -> str:
        """The name of its checkpoint below the folder of checkpoints, without a suffix."""
        source = "k400" if self.protocol == "zero_shot" else self.dataset
        parts = [self.protocol, source, *(["llm"] if self.variant == "LLM" else [])]
        parts += [] if self.number is None else [str(self.number)]
        return f"{self.trainer}/{'_'.join([*parts, *(['p'] if self.variant == 'P' else [])])}"

    @property
    def folder(self) -> str:
        """The name of its folder below the output folder."""
        return self.checkpoint + (f"_on_{self.dataset}" if self.protocol == "zero_shot" else "")

    @property
    def evaluates(self) -> str:
        """The part of the data that it evaluates."""
        return "val" if self.protocol == "few_shot" else "test"

    def overrides(self) -> list[str]:
        """Return the command line of its evaluation as published, without files."""
        source = "k400" if self.protocol == "zero_shot" else self.dataset
        data = f"{self.protocol}_{source}{'_llm' if self.variant == 'LLM' else ''}"
        found = [f"data={data}", f"trainer={self.trainer}", f"eval={self.evaluates}", "views.random=true"]
        found += ["labels=froster"] if self.variant == "LLM" else []
        found += {"few_shot": [f"shot={self.number}"], "base2novel": [f"base={self.number}"]}.get(self.protocol, [])
        return found + ([f"wise_ft={WISE_FT}"] if self.protocol == "zero_shot" else [])


@dataclass(frozen=True)
class Outcome:
    """What came of a unit: its results file, or why it could not be evaluated; what can explain a difference."""

    document: dict[str, Any] | None
    reason: str | None = None
    findings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """A published number: its units, and which of their numbers it is the mean of."""

    trainer: str
    protocol: str
    variant: str
    dataset: str
    measure: str
    published: float | None
    units: tuple[Unit, ...]

    @property
    def title(self) -> str:
        """The row in words."""
        name = TRAINERS[self.trainer] + (f" ({self.variant})" if self.variant else "")
        return f"{name}, {self.protocol}, {DATASETS[self.dataset]}, {self.measure}"

    def compare(self, outcomes: Mapping[Unit, Outcome]) -> dict[str, Any]:
        """Return the row as the JSON has it: `published`, `here`, `difference`, `within`, `reasons`; percent."""
        found: dict[str, Any] = {"row": self.title, "protocol": self.protocol, "trainer": self.trainer}
        found |= {"variant": self.variant, "dataset": self.dataset, "measure": self.measure}
        of_units = {unit: outcomes[unit] for unit in self.units}
        done = list(of_units.values())
        missing = [f"{unit.folder}: {outcome.reason}" for unit, outcome in of_units.items() if outcome.reason]
        here, std = (None, None) if missing else self._value([out.document or {} for out in done])
        if not missing and here is None:
            missing = [f"{self.measure} has no value for so few classes"]
        difference = None if here is None or self.published is None else here - self.published
        within = None if difference is None else abs(difference) <= TOLERANCE + 1e-9
        reasons = missing or list(dict.fromkeys(line for out in done for line in out.findings))
        if here is not None and self.published is None:
            reasons = ["its published number is not known to this project", *reasons]
        return {
            **found,
            **{"published": self.published, "here": here, "std": std, "difference": difference, "within": within},
            "reasons": reasons,
            "checkpoints": {unit.folder: (one.document or {}).get("weights_sha256") for unit, one in of_units.items()},
        }

    def _value(self, documents: Sequence[dict[str, Any]]) -> tuple[float | None, float | None]:
        """Return mean and standard deviation (None for a single value) of the row's number."""
        if self.protocol == "base2novel":
            base, novel = (
                [row["top1"] for document in documents for row in document["results"] if row["part"] == part]
                for part in ("val", "test")
            )
            means = {"base": mean_and_std(base)[0], "novel": mean_and_std(novel)[0]}
            return {**means, "HM": harmonic_mean(*means.values())}[self.measure], None
        name = "top5" if self.measure == "top-5" else "top1"
        values = [row[name] for document in documents for row in document["results"]]
        if None in values:
            return None, None
        mean, std = mean_and_std(values)
        return mean, std if len(values) > 1 else None


def published_rows(trainers: Iterable[str], protocols: Iterable[str], datasets: Iterable[str]) -> list[Row]:
    """Return the rows of the papers that were chosen, in the order of the tables."""
    protocols, datasets = list(protocols), list(datasets)
    rows = []
    for trainer in trainers:
        for protocol in (name for name in COLUMNS if name in protocols):
            for variant in VARIANTS[trainer]:
                for dataset, measure in COLUMNS[protocol]:
                    number = PUBLISHED.get((protocol, variant, dataset, measure))
                    if dataset in datasets and number is not None:  # ViFi-CLIP's rows are those of plain TC-CLIP
                        known = number[0] if trainer == "tc_clip" else None
                        units = tuple(_units(trainer, protocol, variant, dataset, measure))
                        rows.append(Row(trainer, protocol, variant, dataset, measure, known, units))
    return rows


def list_findings(name: str, list_name: str, num_videos: int, num_missing: int) -> list[str]:
    """Return how a list differs from the published one, as far as its numbers show, and its missing videos."""
    found = []
    published = LISTS.get(list_name)
    if published is not None and published.videos not in (None, num_videos):
        found.append(f"{name}: the list {list_name} has {num_videos:,} videos, the published one {published.videos:,}")
    if num_missing:
        found.append(f"{name}: {num_missing:,} of {num_videos:,} videos are missing")
    return found


def result_findings(document: Mapping[str, Any], variant: str, missing: int) -> list[str]:
    """Return what in the results of a unit can explain a difference from the published number.

    Args:
        missing: how many videos were known to be missing before.
    """
    found = []
    unreadable = sum(row["unreadable"] for row in document["results"]) - missing
    if unreadable > 0:
        found.append(f"{unreadable:,} videos cannot be read")
    for row in document["results"]:
        labels = row["files"]["labels"]
        if labels == "as in the paths" and "hmdb" in row["name"] and variant != "LLM":
            found.append(
                f"{row['name']}: labels are as in the paths; those of the published lists and names differ for 8 % of "
                "HMDB-51's videos (kick and kick ball, sword and sword exercise), which the published number contains"
            )
    found += document["caveats"]
    if document["precision"] != _PUBLISHED_PRECISION:
        found.append(f"precision={document['precision']}, published {_PUBLISHED_PRECISION}")
    if not document["random_views"] and any(row["num_clip"] > 1 for row in document["results"]):
        found.append("views are evenly spaced; published ones are drawn at random (views.random=true)")
    return found


def known_hashes(ledger: Path) -> dict[str, dict[str, str]]:
    """Return list -> SHA-256 -> the entry that has it, of a ledger's entries (`docs/ledger.md`).

    Raises:
        ConfigError: if one is damaged.
    """
    hashes: dict[str, dict[str, str]] = {}
    for path in sorted(ledger.rglob("results*.json")):
        document = read_document(path)
        if document.get("ledger_format") == FORMAT:
            for row in document["results"]:
                files = row["files"]
                hashes.setdefault(row["name"], {})[str(files["list_sha256"])] = path.name
    return hashes


def hash_findings(document: Mapping[str, Any], hashes: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a line for each list of the results that no entry of a ledger has evaluated with the same content."""
    found = []
    for row in document["results"]:
        known, own = hashes.get(row["name"], {}), row["files"]["list_sha256"]
        if known and own not in known:
            other, entry = next(iter(known.items()))
            found.append(
                f"{row['name']}: the list's SHA-256 is {own[:12]}..., in {entry} of the ledger {other[:12]}..."
            )
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return compared rows as text; the reasons stand below each row that is not within the tolerance."""
    lines = [("row", "published", "here", "difference", "")]
    for row in rows:
        verdict = {True: "within", False: "OUTSIDE", None: "not run" if row["here"] is None else "no verdict"}
        spread = "" if row["std"] is None else f" +- {row['std']:.1f}"
        difference = "" if row["difference"] is None else f"{row['difference']:+.1f}"
        here = "-" if row["here"] is None else f"{row['here']:.1f}{spread}"
        published = "-" if row["published"] is None else f"{row['published']:.1f}"
        lines.append((row["row"], published, here, difference, verdict[row["within"]]))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    text = []
    for number, line in enumerate(lines):
        cells = [cell.ljust(w) if column in (0, 4) else cell.rjust(w) for column, (cell, w) in _columns(line, widths)]
        text.append("  ".join(cells).rstrip())
        if number and rows[number - 1]["within"] is not True:
            text += [f"    {reason}" for reason in rows[number - 1]["reasons"]]
    return "\n".join(text)


def _columns(line: Sequence[str], widths: Sequence[int]) -> Iterable[tuple[int, tuple[str, int]]]:
    return enumerate(zip(line, widths, strict=True))


def _units(trainer: str, protocol: str, variant: str, dataset: str, measure: str) -> Iterable[Unit]:
    numbers: Sequence[int | None] = (None,)
    if protocol == "few_shot":
        numbers = (int(measure.removeprefix("K=")),)
    elif protocol == "base2novel":
        numbers = (1, 2, 3)
    return (Unit(trainer, protocol, variant, dataset, number) for number in numbers)
