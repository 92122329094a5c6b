"""One self-contained page about a run or an evaluation: numbers, classes, confusions, videos, curves, facts."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from trainers.inference.visualize.html import data_url
from trainers.metrics import metric_titles
from trainers.reporting.charts import bar_chart, confusion_chart, escape, line_chart
from trainers.reporting.published_numbers import PUBLISHED
from trainers.reporting.read_results import Answer, Answers, RunFolder, read_run
from video_datasets.decoding import VideoReadError, decode
from video_datasets.sampling import test_indices
from video_datasets.video_files import VideoFilesError, open_video_files

Picture = Callable[[str], str | None]  # a listed path -> a data URL, or None where there is no picture
SHOWN_VIDEOS = 9
SHOWN_CLASSES = 40
SHOWN_PAIRS = 12
THUMBNAIL_FRAMES = 4
THUMBNAIL_SIDE = 128


def write_report(folder: Path, videos_root: Path | None = None, target: Path | None = None) -> Path:
    """Write the page of a run's folder and return where it is.

    Args:
        folder: with `results*.json`; `predictions_*.csv`, `metrics.jsonl`, configuration and environment as far as
            they are there.
        videos_root: where the videos are, for the pictures; None: where the configuration has them.
        target: the page; by default `report.html` in the folder.

    Raises:
        ConfigError: where the folder has no results or a file is damaged.
    """
    run = read_run(folder)
    target = target or folder / "report.html"
    target.write_text(report_page(run, videos_root), encoding="utf-8")
    return target


def report_page(run: RunFolder, videos_root: Path | None = None) -> str:
    """Return the page; see `write_report`."""
    sections = [_headline(run)]
    for answers in run.answers:
        if answers.answers:
            sections.append(_list_section(answers, pictures_of(run, answers.name, videos_root)))
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


def published_beside(config: Mapping[str, Any], row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the paper's numbers for a row of results: (row of the paper's table, number); often none."""
    protocol = config.get("protocol")
    measures = {
        "zero_shot": "top-1",
        "few_shot": f"K={config.get('shot')}",
        "base2novel": "base" if row.get("part") == "val" else "novel",
        "fully_supervised": "top-1",
    }
    data = str(config.get("data", {}).get("name", "")).removeprefix(f"{protocol}_")
    source = str(row.get("group", "")) if protocol == "zero_shot" else data.removesuffix("_llm")
    if protocol == "zero_shot" and row.get("part") != "test":
        return []
    found = []
    for kind, title in (("", "TC-CLIP"), ("LLM", "TC-CLIP, rephrased names"), ("P", "TC-CLIP, from zero-shot")):
        number = PUBLISHED.get((protocol, kind, source, measures.get(protocol)))
        if number is not None:
            found.append((title, f"{number[0]}" + (f" ± {number[1]}" if number[1] is not None else "")))
    return found


def pictures_of(run: RunFolder, name: str, videos_root: Path | None) -> Picture:
    """Return a function that draws frames of a listed video as a data URL, None where it cannot be read."""
    root = videos_root or _root_of(run.config, name)
    files = None
    if root is not None:
        try:
            files = open_video_files(str(root))
        except VideoFilesError:
            files = None  # the page is still worth having where the videos are elsewhere

    def picture(listed: str) -> str | None:
        if files is None:
            return None
        try:
            frames = decode(files.find(listed), lambda count: test_indices(count, THUMBNAIL_FRAMES)[0])
        except (VideoReadError, VideoFilesError):
            return None
        return data_url(strip(frames), quality=75)

    return picture


def strip(frames: np.ndarray) -> Image.Image:
    """Put frames (T, H, W, 3) side by side, small."""
    small = []
    for frame in frames:
        picture = Image.fromarray(frame)
        picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        small.append(picture)
    sheet = Image.new("RGB", (sum(p.width for p in small) + 2 * (len(small) - 1), small[0].height), (255, 255, 255))
    for place, picture in enumerate(small):
        sheet.paste(picture, (place * (small[0].width + 2), 0))
    return sheet


def _headline(run: RunFolder) -> str:
    rows = []
    seen: list[Any] = []
    for document in run.results.values():
        for row in document["results"]:
            if row in seen:
                continue
            seen.append(row)
            weights = str(row.get("weights", ""))
            if row.get("wise_ft") is not None:
                weights += f", wise_ft {row['wise_ft']:g}"
            published = "<br>".join(
                f"{escape(value)} <span class=faint>{escape(what)}</span>"
                for what, value in published_beside(run.config, row)
            )
            unread = f" (+{row['unreadable']} unreadable)" if row.get("unreadable") else ""
            rows.append(
                f"<tr><td>{escape(row.get('name'))} <span class=faint>{escape(row.get('part'))}</span></td>"
                f"<td>{escape(weights)}</td><td>{row.get('num_clip')} × {row.get('num_crop')}</td>"
                f'<td class="n">{row.get("videos", 0):,}{unread}</td>'
                + "".join(
                    f'<td class="n{" big" if name == "top1" else ""}">{_percent(row.get(name))}</td>'
                    for name in (*metric_titles(), "chance")
                )
                + f"<td>{published}</td></tr>"
            )
    numbers = ("videos", *(f"{title} %" for title in metric_titles().values()), "chance %")
    head = "".join(
        f'<th class="{"n" if name in numbers else ""}">{name}</th>'
        for name in ("list", "weights", "views", *numbers, "published, top-1 %")
    )
    table = f"<h2>Results</h2><div class=card><table><tr>{head}</tr>{''.join(rows)}</table>"
    lines = [_summary_line(item) for document in run.results.values() for item in document.get("summary") or []]
    return table + "".join(f"<p>{line}</p>" for line in dict.fromkeys(lines)) + "</div>"


def _summary_line(item: Mapping[str, Any]) -> str:
    if item.get("kind") == "mean":
        spread = f" ± {item['top1_std']:.2f}" if item.get("top1_std") is not None else ""
        return escape(f"{item.get('name')}, mean of {item.get('splits')}: {item['top1']:.2f}{spread} %")
    if item.get("kind") == "base2novel":
        return escape(
            f"base {item['base']:.2f} %, novel {item['novel']:.2f} %, harmonic mean {item['harmonic_mean']:.2f} %"
        )
    return escape(json.dumps(item))


def _list_section(answers: Answers, picture: Picture) -> str:
    matrix = answers.confusion()
    totals = matrix.sum(axis=1)
    right = matrix.trace()
    parts = [
        f"<h2>{escape(answers.name)}</h2><div class=faint>{right:,} of {len(answers.answers):,} videos right, "
        f"{100 * right / len(answers.answers):.2f} %</div>"
    ]
    shares = [
        (name, 100 * matrix[i, i] / totals[i], f"  of {totals[i]}")
        for i, name in enumerate(answers.class_names)
        if totals[i]
    ]
    shares.sort(key=lambda item: item[1])
    half = SHOWN_CLASSES // 2
    shown = shares if len(shares) <= SHOWN_CLASSES else shares[:half] + shares[-half:]
    title = "Classes" if len(shown) == len(shares) else f"Classes: the {half} weakest and the {half} strongest"
    parts.append(f"<h3>{title}</h3><div class=card>{bar_chart(shown)}</div>")
    parts.append(f"<h3>Confusions</h3>{_pairs(answers, matrix)}")
    parts.append(f"<div class=card>{confusion_chart(answers.class_names, matrix)}</div>")
    for heading, chosen in (
        ("Hardest: wrong, and most sure of it", answers.hardest(SHOWN_VIDEOS)),
        ("Surest: right, one a class", answers.surest(SHOWN_VIDEOS)),
    ):
        if chosen:
            cards = "".join(_video_card(answer, picture(answer.video)) for answer in chosen)
            parts.append(f"<h3>{heading}</h3><div class=videos>{cards}</div>")
    return "".join(parts)


def _pairs(answers: Answers, matrix: np.ndarray) -> str:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:SHOWN_PAIRS]
    rows = []
    for place in order:
        row, column = np.unravel_index(place, wrong.shape)
        if not wrong[row, column]:
            break
        total = matrix[row].sum()
        rows.append(
            f"<tr><td>{escape(answers.class_names[row])}</td><td>{escape(answers.class_names[column])}</td>"
            f'<td class="n">{wrong[row, column]} of {total}</td></tr>'
        )
    if not rows:
        return "<p>None.</p>"
    head = "<tr><th>class</th><th>taken for</th><th class=n>times</th></tr>"
    return f"<div class=card><table>{head}{''.join(rows)}</table></div>"


def _video_card(answer: Answer, picture: str | None) -> str:
    image = f'<img alt="frames" src="{picture}">' if picture else "<div class=faint>no picture</div>"
    bars = "".join(
        f"<div class=top><span>{escape(name)}</span><i style='width:{100 * score:.1f}%'></i>"
        f"<b>{100 * score:.1f} %</b></div>"
        for name, score in zip(answer.classes, answer.scores, strict=True)
    )
    kind = "right" if answer.is_right else "wrong"
    return (
        f"<div class=video>{image}<div class=name>{escape(answer.video)}</div>"
        f'<div class="{kind}">{escape(answer.label)}</div>{bars}</div>'
    )


def _curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    train, val = metrics.get("train", []), metrics.get("val", [])

    def line(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
        return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]

    rates = sorted({name for row in train for name in row if name == "lr" or name.startswith("lr_")})
    drawn = [
        ("training loss", line_chart({"loss": line(train, "loss")}, "micro-batches", "cross entropy")),
        (
            "validation",
            line_chart({title: line(val, name) for name, title in metric_titles().items()}, "micro-batches", "%"),
        ),
        ("learning rates", line_chart({name: line(train, name) for name in rates}, "micro-batches", "rate")),
        ("throughput", line_chart({"videos": line(train, "videos_per_second")}, "micro-batches", "videos a second")),
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


def _root_of(config: Mapping[str, Any], name: str) -> str | None:
    """Return the folder of the videos of a predictions file `{part}_{list}[_wise_ft_...]`."""
    data, datasets = config.get("data") or {}, config.get("dataset") or {}
    lists = {f"test_{entry.get('name')}": entry for entry in data.get("test") or []}
    lists |= {f"{part}_{data.get('name')}": data[part] for part in ("val", "train") if data.get(part)}
    fitting = [stem for stem in lists if name == stem or name.startswith(f"{stem}_wise_ft")]
    if not fitting:
        return None
    return (datasets.get(lists[max(fitting, key=len)].get("dataset")) or {}).get("root")


def _first(run: RunFolder, key: str) -> Any:
    return next((document[key] for document in run.results.values() if document.get(key)), None)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
