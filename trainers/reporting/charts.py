"""Charts as SVG text, for pages that need no network: lines, bars, a confusion matrix."""

import html
import math
from collections.abc import Mapping, Sequence

from trainers.reporting.confusion import MAX_NAMED_CLASSES, Confusion

COLOURS = ("#2257c4", "#d1691f", "#2b8a5a", "#9a3fb5", "#b8202e")
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 12, 34


def escape(text: object) -> str:
    """Return a text escaped for HTML and its attributes."""
    return html.escape(str(text), quote=True)


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]], x_title: str, y_title: str, width: int = 440, height: int = 230
) -> str:
    """Draw named lines of (x, y) points."""
    series = {name: line for name, line in series.items() if line}
    points = [point for line in series.values() for point in line if math.isfinite(point[1])]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    top = _TOP if len(series) == 1 else _TOP + 16
    low_x, high_x = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    ticks = nice_ticks(min(ys), max(ys))
    low_y, high_y = min(ticks[0], min(ys)), max(ticks[-1], max(ys))

    def x_of(x: float) -> float:
        return _LEFT + (x - low_x) / (high_x - low_x) * (width - _LEFT - _RIGHT)

    def y_of(y: float) -> float:
        return height - _BOTTOM - (y - low_y) / (high_y - low_y) * (height - top - _BOTTOM)

    parts = []
    for tick in ticks:
        y = y_of(tick)
        parts.append(f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in nice_ticks(low_x, high_x, 5):
        if low_x <= tick <= high_x:
            parts.append(f'<text x="{x_of(tick):.1f}" y="{height - 18}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'<text x="{(width + _LEFT) / 2:.0f}" y="{height - 4}" text-anchor="middle">{escape(x_title)}</text>')
    middle = (height - _BOTTOM) / 2
    parts.append(
        f'<text x="11" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 11 {middle:.0f})">'
        f"{escape(y_title)}</text>"
    )
    legend = _LEFT
    for i, (name, line) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line if math.isfinite(y))
        if len(line) == 1:
            parts.append(f'<circle cx="{x_of(line[0][0]):.1f}" cy="{y_of(line[0][1]):.1f}" r="3" fill="{colour}"/>')
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        if len(series) > 1:
            parts.append(f'<rect x="{legend}" y="7" width="14" height="4" fill="{colour}"/>')
            parts.append(f'<text x="{legend + 19}" y="13">{escape(name)}</text>')
            legend += 45 + 6 * len(name)
    return _svg(width, height, parts)


def bar_chart(bars: Sequence[tuple[str, float, str]], width: int = 900, limit: float = 100.0) -> str:
    """Draw horizontal bars of (name, value in percent, note), one per line."""
    row, margin = 17, 250
    room = width - margin - 150
    parts = []
    for i, (name, value, note) in enumerate(bars):
        y = i * row
        parts.append(f'<text x="{margin - 8}" y="{y + 12}" text-anchor="end">{escape(shortened(name, 40))}</text>')
        parts.append(
            f'<rect x="{margin}" y="{y + 3}" width="{max(1.0, room * value / limit):.1f}" height="{row - 6}" '
            f'fill="{COLOURS[0]}"><title>{escape(name)}: {value:.1f} %</title></rect>'
        )
        after = margin + room * value / limit + 6
        parts.append(f'<text x="{after:.1f}" y="{y + 12}">{value:.1f} %{escape(note)}</text>')
    return _svg(width, row * len(bars) + 4, parts)


def confusion_chart(confusion: Confusion, width: int = 860) -> str:
    """Draw a confusion matrix, each row as shares of its class; cells without videos are left out."""
    names = confusion.class_names
    count = len(names)
    is_named = count <= MAX_NAMED_CLASSES
    margin = 210 if is_named else 30
    cell = max(1.5, (width - margin) / count)
    side = margin + cell * count + 4
    parts = [f'<rect x="{margin}" y="{margin}" width="{cell * count:.1f}" height="{cell * count:.1f}" class="ground"/>']
    for (row, column), videos in sorted(confusion.counts.items()):
        total = confusion.videos[row]
        colour = COLOURS[2] if row == column else COLOURS[4]
        parts.append(
            f'<rect x="{margin + column * cell:.1f}" y="{margin + row * cell:.1f}" width="{cell:.2f}" '
            f'height="{cell:.2f}" fill="{colour}" fill-opacity="{0.12 + 0.88 * videos / total:.2f}">'
            f"<title>{escape(names[row])} taken for {escape(names[column])}: {videos} of {total}</title></rect>"
        )
    if is_named:
        for i, name in enumerate(names):
            centre = margin + (i + 0.5) * cell
            text = escape(shortened(name, 32))
            parts.append(f'<text x="{margin - 5}" y="{centre + 3:.1f}" text-anchor="end" class="small">{text}</text>')
            parts.append(
                f'<text class="small" transform="translate({centre + 3:.1f} {margin - 5}) rotate(-90)">{text}</text>'
            )
    else:
        parts.append(f'<text x="{margin}" y="{margin - 8}">predicted class, in the order of the labels</text>')
        parts.append(f'<text transform="translate(20 {side - 4:.0f}) rotate(-90)">label</text>')
    return _svg(side, side, parts)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers from at most `low` to at least `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0) * 0.1
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (factor * step) <= count)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """Return a number as the label of an axis."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.10g}"


def shortened(text: str, length: int) -> str:
    """Return a text cut to a length, with an ellipsis if it was longer."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img">'
        + "".join(parts)
        + "</svg>"
    )
