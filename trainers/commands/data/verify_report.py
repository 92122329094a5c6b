"""The report of a verification: tables as CSV, a summary in HTML and markdown, pictures of samples and problems."""

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainers.commands.data.inspect_video import LEVELS, VideoFacts
from trainers.csv_files import write_csv

_MAX_ROWS = 500  # of the table of problems in the summaries; problems.csv has all
_MAX_PICTURES = 48
_COLUMNS = (
    "path", "class", "level", "findings", "frames", "claimed_frames", "width", "height", "fps", "codec", "bytes",
    "seconds", "lists",
)  # fmt: skip
_STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:75em}table{border-collapse:collapse}"
    "td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:left;vertical-align:top}"
    ".error{color:#b00}.warning{color:#a60}img{max-width:100%}"
)


@dataclass
class Verified:
    """A listed video and its facts."""

    root: str
    path: str
    class_name: str | None
    lists: list[str]
    facts: VideoFacts

    @property
    def level(self) -> str:
        """The most severe level among the findings."""
        return max((level for level, _, _ in self.facts.findings), key=LEVELS.index, default="ok")

    @property
    def is_bad(self) -> bool:
        """Whether it is unreadable for training."""
        return self.level == "error"

    @property
    def is_mislabelled(self) -> bool:
        """Whether something contradicts its label."""
        return any(kind == "mislabelled" for _, kind, _ in self.facts.findings)

    def text(self) -> str:
        """Return the findings in one line."""
        return "; ".join(f"{kind}: {text}" for _, kind, text in self.facts.findings)


def is_safe(verified: Sequence[Verified], max_bad_share: float) -> bool:
    """Return whether training is safe: few enough unreadable videos, and none mislabelled."""
    bad = sum(item.is_bad for item in verified)
    return bad <= max_bad_share * len(verified) and not any(item.is_mislabelled for item in verified)


def write_report(
    output: Path, title: str, verified: Sequence[Verified], full: bool, max_bad_share: float, samples: Sequence[int]
) -> None:
    """Write videos.csv, problems.csv, bad_videos.txt, summary.html, summary.md and the pictures."""
    problems = [item for item in verified if item.level in LEVELS[2:]]
    problems.sort(key=lambda item: -LEVELS.index(item.level))
    _write_table(output / "videos.csv", verified)
    _write_table(output / "problems.csv", problems)
    bad = "".join(f"{item.path}\n" for item in verified if item.is_bad)
    (output / "bad_videos.txt").write_text(bad, encoding="utf-8", errors="backslashreplace")
    pictures = {
        "samples": [verified[index] for index in samples if verified[index].facts.thumbnail],
        "problems": [item for item in problems if item.facts.thumbnail][:_MAX_PICTURES],
    }
    sheets = {name: _contact_sheet(items) for name, items in pictures.items() if items}
    for name, content in sheets.items():
        (output / f"{name}.jpg").write_bytes(content)
    facts = _facts(verified, full, max_bad_share)
    (output / "summary.md").write_text(
        _markdown(title, facts, problems, list(sheets)), encoding="utf-8", errors="backslashreplace"
    )
    (output / "summary.html").write_text(
        _html(title, facts, problems, sheets), encoding="utf-8", errors="backslashreplace"
    )


def _facts(verified: Sequence[Verified], full: bool, max_bad_share: float) -> list[tuple[str, str]]:
    levels = Counter(item.level for item in verified)
    kinds = Counter(
        (level, kind) for item in verified for level, kind in {(level, kind) for level, kind, _ in item.facts.findings}
    )
    bad, mislabelled = levels["error"], sum(item.is_mislabelled for item in verified)
    frames = sorted(item.facts.frames for item in verified if item.facts.frames is not None)
    reason = f"{bad} unreadable ({bad / len(verified):.2%}, {max_bad_share:.2%} allowed), {mislabelled} mislabelled"
    facts = [
        ("safe to train", f"{'yes' if is_safe(verified, max_bad_share) else 'NO'}: {reason}"),
        ("videos", f"{len(verified):,}: " + ", ".join(f"{levels[level]:,} {level}" for level in LEVELS)),
        ("decoded", "every frame in order" if full else "the frames of one test view"),
    ]
    if kinds:
        ordered = sorted(kinds.items(), key=lambda item: -LEVELS.index(item[0][0]))
        facts.append(("found", ", ".join(f"{count:,} {kind} ({level})" for (level, kind), count in ordered)))
    if frames:
        facts.append(("frames", f"{frames[0]} to {frames[-1]}, median {frames[len(frames) // 2]}"))
    for title, name in (("size", "size"), ("fps", "fps"), ("codec", "codec")):
        values = Counter(
            f"{item.facts.width}x{item.facts.height}" if name == "size" else str(getattr(item.facts, name))
            for item in verified
            if item.facts.codec is not None
        )
        more = f", {len(values) - 6} more" if len(values) > 6 else ""
        facts.append((title, ", ".join(f"{value} ({count:,})" for value, count in values.most_common(6)) + more))
    size = sum(item.facts.bytes for item in verified)
    seconds = sum(item.facts.seconds for item in verified)
    facts.append(("bytes", f"{size / 1e9:.2f} GB; {1000 * seconds / len(verified):.0f} ms per video on one core"))
    return facts


def _markdown(title: str, facts: list[tuple[str, str]], problems: Sequence[Verified], sheets: list[str]) -> str:
    lines = [f"# Videos of {title}", ""]
    lines += [f"- {name}: {value}" for name, value in facts]
    if problems:
        lines += ["", "## Problems", "", "| video | class | level | found |", "|---|---|---|---|"]
        cells = ((item.path, item.class_name or "", item.level, item.text()) for item in problems[:_MAX_ROWS])
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        if len(problems) > _MAX_ROWS:
            lines.append(f"\n{len(problems) - _MAX_ROWS:,} more in problems.csv")
    for name in sheets:
        lines += ["", f"## Pictures: {name}", "", f"![{name}]({name}.jpg)"]
    return "\n".join(lines) + "\n"


def _html(title: str, facts: list[tuple[str, str]], problems: Sequence[Verified], sheets: dict[str, bytes]) -> str:
    """Return a page that needs no other file."""
    text = html.escape
    body = [f"<h1>Videos of {text(title)}</h1><table>"]
    body += [f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in facts]
    body.append("</table>")
    if problems:
        body.append("<h2>Problems</h2><table><tr><th>video</th><th>class</th><th>level</th><th>found</th></tr>")
        for item in problems[:_MAX_ROWS]:
            cells = (item.path, item.class_name or "", item.level, item.text())
            body.append(f'<tr class="{item.level}">' + "".join(f"<td>{text(cell)}</td>" for cell in cells) + "</tr>")
        body.append("</table>")
        if len(problems) > _MAX_ROWS:
            body.append(f"<p>{len(problems) - _MAX_ROWS:,} more in problems.csv</p>")
    for name, content in sheets.items():
        data = base64.b64encode(content).decode()
        body.append(f'<h2>Pictures: {name}</h2><img alt="{name}" src="data:image/jpeg;base64,{data}">')
    head = f'<meta charset="utf-8"><title>Videos of {text(title)}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(body)}</body></html>\n"


def _write_table(path: Path, items: Sequence[Verified]) -> None:
    rows = []
    for item in items:
        facts = item.facts
        values = [facts.frames, facts.claimed_frames, facts.width, facts.height, facts.fps, facts.codec]
        values += [facts.bytes, facts.seconds, ";".join(item.lists)]
        rows.append([item.path, item.class_name, item.level, item.text(), *values])
    write_csv(path, _COLUMNS, rows)


def _contact_sheet(items: Sequence[Verified], columns: int = 6) -> bytes:
    """Return the thumbnails of videos in rows, each above its class and the end of its path, as a JPEG."""
    from PIL import Image, ImageDraw

    cell_width, cell_height = 180, 130
    rows = -(-len(items) // columns)
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, item in enumerate(items):
        left, top = number % columns * cell_width, number // columns * cell_height
        picture = Image.open(io.BytesIO(base64.b64decode(item.facts.thumbnail or "")))
        picture.thumbnail((cell_width - 6, 96))
        sheet.paste(picture, (left + 3, top + 3))
        for line, words in enumerate((item.class_name or "", item.path[-28:])):
            shown = words[:28].encode("latin-1", "replace").decode("latin-1")  # the built-in font has only these
            pen.text((left + 3, top + 101 + 13 * line), shown, fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
