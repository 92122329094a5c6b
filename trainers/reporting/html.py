"""One self-contained page about a run or an evaluation: numbers, classes, confusions, videos, curves, facts."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trainers.files import write_text
from trainers.metrics import metric_titles
from trainers.reporting.charts import bar_chart, confusion_chart, escape, line_chart
from trainers.reporting.confusion import MAX_DRAWN_CLASSES, Confusion
from trainers.reporting.published_numbers import published_numbers
from trainers.reporting.read_results import PredictionsFile, RunFolder, VideoPrediction, read_run, rows_of
from trainers.reporting.robustness import signed
from trainers.reporting.thumbnails import Thumbnail, thumbnails_of

SHOWN_VIDEOS = 9
SHOWN_CLASSES = 40
SHOWN_PAIRS = 12


def write_report(folder: Path, videos_root: Path | None = None, target: Path | None = None) -> Path:
    """Write the page of a run's folder and return its path.

    Args:
        folder: with `results*.json`; `predictions_*.csv`, `metrics.jsonl`, configuration and environment are used if
            they exist.
        videos_root: folder or archive of the videos, for the pictures; None: as in the configuration if the
            user owns the folder, else without pictures.
        target: the page; by default `report.html` in the folder.

    Raises:
        ConfigError: if the folder has no results, a file is damaged, or the page cannot be written.
    """
    target = target or folder / "report.html"
    write_text(target, report_page(read_run(folder), videos_root))
    return target


def report_page(run: RunFolder, videos_root: Path | None = None) -> str:
    """Return the page; see `write_report`."""
    sections = [_headline(run), _robustness(run)]
    for content in run.predictions:
        if content.predictions:
            sections.append(_list_section(content, thumbnails_of(run, content.name, videos_root)))
    sections += [_curves(run.metrics), _facts(run)]
    title = f"{run.config.get('data', {}).get('name', run.path.name)}: {_first(run, 'trainer') or 'results'}"
    style = (Path(__file__).parent / "assets" / "report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><h1>{escape(title)}</h1>"
        f'<div class="faint">{escape(run.path)}, {time.strftime("%Y-%m-%d %H:%M")}</div>'
        + "".join(section for section in sections if section)
        + "</body></html>\n"
    )


def _headline(run: RunFolder) -> str:
    rows = []
    titles = metric_titles(name for row in rows_of(run.results.values()) for name in row)
    for row in rows_of(run.results.values()):
        weights = str(row.get("weights", ""))
        if row.get("wise_ft") is not None:
            weights += f", wise_ft {row['wise_ft']:g}"
        published = "<br>".join(
            f"{escape(value)} <span class=faint>{escape(title)}</span>"
            for title, value in published_numbers(run.config, row)
        )
        unreadable = f" (+{row['unreadable']} unreadable)" if row.get("unreadable") else ""
        metrics = "".join(
            f'<td class="n{" big" if name == "top1" else ""}">{_percent(row.get(name))}</td>'
            for name in (*titles, "chance")
        )
        rows.append(
            f"<tr><td>{escape(row.get('name'))} <span class=faint>{escape(row.get('part'))}</span></td>"
            f"<td>{escape(weights)}</td><td>{row.get('num_clip')} × {row.get('num_crop')}</td>"
            f'<td class="n">{row.get("videos", 0):,}{unreadable}</td>{metrics}<td>{published}</td></tr>'
        )
    numbers = ("videos", *(f"{title} %" for title in titles.values()), "chance %")
    head = "".join(
        f'<th class="{"n" if name in numbers else ""}">{name}</th>'
        for name in ("list", "weights", "views", *numbers, "published, top-1 %")
    )
    table = f"<h2>Results</h2><div class=card><table><tr>{head}</tr>{''.join(rows)}</table>"
    lines = [_summary_line(item) for document in run.results.values() for item in document.get("summary") or []]
    return table + "".join(f"<p>{line}</p>" for line in dict.fromkeys(lines)) + "</div>"


def _robustness(run: RunFolder) -> str:
    """Return the table of the changes, each next to the plain result of its list; empty without changes."""
    rows = [row for row in rows_of(run.results.values()) if row.get("robustness")]
    titles = metric_titles(name for row in rows for name in row)
    lines = []
    for row in rows:
        weights = str(row.get("weights", "")) + (f", wise_ft {row['wise_ft']:g}" if row.get("wise_ft") else "")
        name = f"<td>{escape(row.get('name'))} <span class=faint>{escape(row.get('part'))}</span></td>"
        for result in [row, *row["robustness"]]:
            numbers = "".join(f"<td class=n>{_percent(result.get(metric))}</td>" for metric in titles)
            if result is row:
                change = f"<td class=faint>as they are</td>{numbers}<td></td><td></td>"
            else:
                change = f"<td>{escape(result['change'])}</td>{numbers}<td class=n>{signed(result['difference'])}</td>"
                change += f"<td class=n>{_percent(result['same'])}</td>"
            lines.append(f"<tr>{name}<td>{escape(weights)}</td>{change}</tr>")
    if not lines:
        return ""
    columns = (*(f"{title} %" for title in titles.values()), "top-1 to plain", "same class %")
    head = "<th>list</th><th>weights</th><th>change</th>" + "".join(f"<th class=n>{name}</th>" for name in columns)
    return (
        f"<h2>Robustness</h2><div class=card><table><tr>{head}</tr>{''.join(lines)}</table><p class=faint>The same "
        "frames of the same videos, changed. Same class: videos whose best class is the one without the change. A "
        "model that uses no order has the same results under reverse and shuffle.</p></div>"
    )


def _summary_line(item: Mapping[str, Any]) -> str:
    if item.get("kind") == "mean":
        spread = f" ± {item['top1_std']:.2f}" if item.get("top1_std") is not None else ""
        return escape(f"{item.get('name')}, mean of {item.get('splits')}: {item['top1']:.2f}{spread} %")
    if item.get("kind") == "base2novel":
        return escape(
            f"base {item['base']:.2f} %, novel {item['novel']:.2f} %, harmonic mean {item['harmonic_mean']:.2f} %"
        )
    return escape(json.dumps(item))


def _list_section(content: PredictionsFile, thumbnail: Thumbnail) -> str:
    confusion = content.confusion
    sections = [f"<h2>{escape(content.name)}</h2>"]
    if confusion is None:
        sections.append(
            "<p>A video has any number of classes, so there are no confusions. The average precision of each class is "
            f"in per_class_{escape(content.name)}.csv. Right: the best class is one of the video's.</p>"
        )
    else:
        sections += _class_sections(content, confusion)
    for heading, chosen in (
        ("Hardest: wrong, with the highest scores", content.hardest(SHOWN_VIDEOS)),
        ("Surest: right, one per class", content.surest(SHOWN_VIDEOS)),
    ):
        if chosen:
            cards = "".join(_video_card(item, thumbnail(item.video)) for item in chosen)
            sections.append(f"<h3>{heading}</h3><div class=videos>{cards}</div>")
    return "".join(sections)


def _class_sections(content: PredictionsFile, confusion: Confusion) -> list[str]:
    num_right = int(confusion.right.sum())
    sections = [
        f"<div class=faint>{num_right:,} of {len(content.predictions):,} videos right, {confusion.accuracy:.2f} %</div>"
    ]
    shares = [
        (name, 100 * right / videos, f"  of {videos}")
        for name, right, videos in zip(confusion.class_names, confusion.right, confusion.videos, strict=True)
        if videos
    ]
    shares.sort(key=lambda item: item[1])
    half = SHOWN_CLASSES // 2
    shown = shares if len(shares) <= SHOWN_CLASSES else shares[:half] + shares[-half:]
    title = "Classes" if len(shown) == len(shares) else f"Classes: the {half} weakest and the {half} strongest"
    sections.append(f"<h3>{title}</h3><div class=card>{bar_chart(shown)}</div>")
    sections.append(f"<h3>Confusions</h3>{_pairs(confusion)}")
    if len(confusion.class_names) <= MAX_DRAWN_CLASSES:
        sections.append(f"<div class=card>{confusion_chart(confusion)}</div>")
    else:
        sections.append(
            f"<p>The matrix of {len(confusion.class_names):,} classes is not drawn: more than {MAX_DRAWN_CLASSES:,} "
            f"cannot be read. per_class_{escape(content.name)}.csv has every class.</p>"
        )
    return sections


def _pairs(confusion: Confusion) -> str:
    pairs = confusion.most_confused(SHOWN_PAIRS)
    if not pairs:
        return "<p>None.</p>"
    rows = "".join(
        f"<tr><td>{escape(confusion.class_names[pair.label])}</td>"
        f"<td>{escape(confusion.class_names[pair.predicted])}</td>"
        f'<td class="n">{pair.videos} of {confusion.videos[pair.label]}</td></tr>'
        for pair in pairs
    )
    head = "<tr><th>class</th><th>taken for</th><th class=n>times</th></tr>"
    return f"<div class=card><table>{head}{rows}</table></div>"


def _video_card(item: VideoPrediction, picture: str | None) -> str:
    image = f'<img alt="frames" src="{picture}">' if picture else "<div class=faint>no picture</div>"
    bars = "".join(
        f"<div class=top><span>{escape(name)}</span><i style='width:{100 * score:.1f}%'></i>"
        f"<b>{100 * score:.1f} %</b></div>"
        for name, score in zip(item.classes, item.scores, strict=True)
    )
    kind = "right" if item.is_right else "wrong"
    return (
        f"<div class=video>{image}<div class=name>{escape(item.video)}</div>"
        f'<div class="{kind}">{escape(item.label)}</div>{bars}</div>'
    )


def _curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    train, val = metrics.get("train", []), metrics.get("val", [])
    titles = metric_titles(name for row in val for name in row)

    def line(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
        return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]

    rates = sorted({name for row in train for name in row if name == "lr" or name.startswith("lr_")})
    drawn = [
        ("training loss", line_chart({"loss": line(train, "loss")}, "micro-batches", "loss")),
        (
            "validation",
            line_chart({title: line(val, name) for name, title in titles.items()}, "micro-batches", "%"),
        ),
        ("learning rates", line_chart({name: line(train, name) for name in rates}, "micro-batches", "rate")),
        ("throughput", line_chart({"videos": line(train, "videos_per_second")}, "micro-batches", "videos per second")),
    ]
    charts = "".join(f"<div class=card><div class=faint>{title}</div>{chart}</div>" for title, chart in drawn if chart)
    return f"<h2>Training</h2><div class=charts>{charts}</div>" if charts else ""


def _facts(run: RunFolder) -> str:
    facts = {key: value for key, value in run.environment.items() if not isinstance(value, Mapping | list)}
    if isinstance(run.environment.get("command"), list):
        facts = {"command": " ".join(map(str, run.environment["command"])), **facts}
    git = run.environment.get("git")
    if isinstance(git, Mapping):
        facts["commit"] = str(git.get("commit")) + (", files changed" if git.get("modified") else "")
    packages = run.environment.get("packages")
    if isinstance(packages, Mapping):
        facts["packages"] = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    document = next(iter(run.results.values()))
    facts |= {key: document[key] for key in ("weights", "weights_sha256", "seed") if document.get(key) is not None}
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in facts.items())
    config = ""
    if run.config:
        text = escape(yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True))
        config = f"<details><summary>configuration</summary><pre>{text}</pre></details>"
    return f"<h2>Run</h2><div class=card><table>{rows}</table>{config}</div>"


def _first(run: RunFolder, key: str) -> Any:
    return next((document[key] for document in run.results.values() if document.get(key)), None)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
