"""Drawings of what a model attends to, as PIL images: overlays, contact sheets, timelines, colours.

Pure functions of `Insight`s and arrays; the caller saves the pictures.
"""

import colorsys
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainers.inference.predict import NONE_OF_THESE, Timeline
from trainers.inference.visualize.trace import NO_TOKEN, ContextBlockInsight, Insight

Colour = tuple[int, int, int]

INK, FAINT, PAPER = (28, 32, 38), (110, 116, 124), (255, 255, 255)
GAP = 4  # pixels between tiles
MAX_COLUMNS = 8
SHOWN_TOKENS = 4
SCALE = 40  # pixels of height of the scale below a timeline

# From dark blue (nothing) over green to red: stops of the colour scale "turbo".
_HEAT = np.array(
    [(48, 18, 59), (65, 105, 225), (38, 188, 225), (49, 241, 153), (164, 252, 60), (240, 203, 57), (250, 118, 30)]
    + [(206, 44, 6), (122, 4, 3)],
    dtype=float,
)


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Return colours (..., 3) uint8 of values from 0 to 1."""
    stop = np.clip(values, 0, 1) * (len(_HEAT) - 1)
    low = np.minimum(stop.astype(int), len(_HEAT) - 2)
    rest = (stop - low)[..., None]
    return (_HEAT[low] * (1 - rest) + _HEAT[low + 1] * rest + 0.5).astype(np.uint8)


def token_colours(count: int) -> np.ndarray:
    """Return well separated colours, (count, 3) uint8."""
    hues = (0.02 + np.arange(count) * 0.6180339887) % 1  # the golden ratio keeps neighbours far apart
    shades = [(hue, (0.95, 0.6, 0.8)[i // 3 % 3], (1.0, 0.85)[i // 2 % 2]) for i, hue in enumerate(hues)]
    return np.array([[round(255 * c) for c in colorsys.hsv_to_rgb(*shade)] for shade in shades], dtype=np.uint8)


def attention_overlay(frame: np.ndarray, attention: np.ndarray, side: int, highest: float | None = None) -> Image.Image:
    """Draw weights (P,) of a frame's patches over the frame (S, S, 3); `highest` has the hottest colour."""
    highest = float(attention.max() if highest is None else highest) or 1.0
    grid = round(len(attention) ** 0.5)
    levels = np.clip(attention.reshape(grid, grid) / highest, 0, 1)
    levels = (
        np.asarray(Image.fromarray((levels * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR))
        / 255
    )
    picture = np.asarray(resized(frame, side)).astype(float)
    strength = (0.15 + 0.6 * levels)[..., None]
    return Image.fromarray((_grey(picture) * (1 - strength) + heat_colours(levels) * strength).astype(np.uint8))


def seeds_overlay(frame: np.ndarray, seeds: np.ndarray, side: int) -> Image.Image:
    """Draw a frame with its seed patches (P,) bright and all others dimmed."""
    mask = _patches(seeds.astype(float), side)[..., None]
    picture = np.asarray(resized(frame, side)).astype(float)
    return Image.fromarray((picture * mask + (0.25 * _grey(picture) + 20) * (1 - mask)).astype(np.uint8))


def tokens_overlay(frame: np.ndarray, tokens: np.ndarray, colours: dict[int, Colour], side: int) -> Image.Image:
    """Draw the patches (P,) of chosen context tokens in their colours over a dimmed frame."""
    picture = _dimmed(np.asarray(resized(frame, side)).astype(float))
    for token, colour in colours.items():
        mask = _patches((tokens == token).astype(float), side)[..., None] * 0.7
        picture = picture * (1 - mask) + np.array(colour, dtype=float) * mask
    return Image.fromarray(picture.astype(np.uint8))


def prompt_overlay(
    frame: np.ndarray, tokens: np.ndarray, weights: np.ndarray, side: int, span: tuple[float, float]
) -> Image.Image:
    """Draw a class's attention (K,) to context tokens over a frame, as the colour of each token's patches (P,).

    `span` has the weights at both ends of the colour scale; weights are often close to one another.
    """
    low, high = span
    heat = (weights[np.maximum(tokens, 0)] - low) / (high - low or 1.0)
    levels = _patches(np.where(tokens == NO_TOKEN, 0.0, np.clip(heat, 0, 1)), side)
    strength = 0.7 * _patches((tokens != NO_TOKEN).astype(float), side)[..., None]
    dimmed = _dimmed(np.asarray(resized(frame, side)).astype(float))
    return Image.fromarray((dimmed * (1 - strength) + heat_colours(levels) * strength).astype(np.uint8))


def merged_frames(frames: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return frames (T, S, S, 3) in which every patch is the mean of all patches of its context token.

    Args:
        tokens: (T, P), the token of each patch; patches without a token are grey.
    """
    T, side = frames.shape[:2]
    grid = round(tokens.shape[1] ** 0.5)
    edge = side // grid
    patches = (
        frames.astype(float).reshape(T, grid, edge, grid, edge, 3).swapaxes(2, 3)
    )  # (T, grid, grid, edge, edge, 3)
    patches = patches.reshape(tokens.size, -1)
    flat = tokens.ravel()
    merged = np.full_like(patches, 128.0)
    for token in np.unique(flat[flat != NO_TOKEN]):
        merged[flat == token] = patches[flat == token].mean(axis=0)
    merged = merged.reshape(T, grid, grid, edge, edge, 3).swapaxes(2, 3)
    return merged.reshape(frames.shape).round().astype(np.uint8)


def chosen_tokens(block: ContextBlockInsight, count: int = SHOWN_TOKENS) -> list[int]:
    """Return the context tokens to colour: those that follow something over many frames and positions.

    A token of a single patch shows nothing about time; a token that stays at one position is mostly background.
    """
    sizes, frames, positions = block.token_sizes()
    order = np.lexsort((-sizes, -frames, -np.minimum(frames, positions)))
    return order[:count].tolist()


def colours_of(tokens: Sequence[int]) -> dict[int, Colour]:
    """Return a colour for each token."""
    return {token: (r, g, b) for token, (r, g, b) in zip(tokens, token_colours(len(tokens)).tolist(), strict=True)}


def contact_sheet(
    insights: Sequence[Insight], classes: int = 2, tile: int = 112, blocks: Sequence[int] = ()
) -> Image.Image:
    """Draw everything that was recorded of a video: frames from left to right, the rows of each model below the last.

    Args:
        insights: of the video, one for each model.
        classes: number of best classes whose prompts' attention is drawn.
        tile: pixels of a frame's side.
        blocks: vision blocks (from 1) whose attention to draw; by default a middle one and the last.
    """
    margin = 168
    shown = _columns(len(insights[0].frames))
    width = margin + len(shown) * (tile + GAP) + GAP
    rows: list[Image.Image] = [_title(Path(insights[0].path).name, width, 22)]
    for insight in insights:
        best = ", ".join(f"{insight.class_names[i]} {100 * insight.scores[i]:.0f} %" for i in insight.best_classes(3))
        rows.append(_title(f"{insight.model}:  {best}", width, 15))
        for label, tiles in _rows(insight, classes, tile, blocks, shown):
            rows.append(_row(label, tiles, margin, width))
    return stack(rows)


def overlay_frames(insights: Sequence[Insight], side: int = 224) -> list[Image.Image]:
    """Draw one picture per frame for a film: the frame, attention, context tokens and prompts; one row per model."""
    pictures = []
    for t in range(len(insights[0].frames)):
        bands = []
        for insight in insights:
            (best,) = insight.best_classes(1)
            labelled = []
            for label, tiles in _rows(insight, 1, side, (len(insight.blocks),), [t]):
                if not label.startswith("seed"):
                    labelled.append((label.replace("\n", " "), tiles[0]))
            width = len(labelled) * (side + GAP) + GAP
            heading = f"{insight.model}: {insight.class_names[best]} {100 * insight.scores[best]:.0f} %"
            band = Image.new("RGB", (width, side + 2 * GAP + 18), PAPER)
            for i, (label, picture) in enumerate(labelled):
                left = GAP + i * (side + GAP)
                band.paste(picture, (left, 18 + GAP))
                _text(band, (left, 3), label, 11, FAINT, side)
            bands += [_title(heading, width, 14), band]
        picture = stack(bands)
        # H.264 needs even sides.
        pictures.append(picture.crop((0, 0, picture.width // 2 * 2, picture.height // 2 * 2)))
    return pictures


def timeline_picture(timeline: Timeline, top: int = 5) -> Image.Image:
    """Draw a timeline: one row per class (those that are best at some time, then those with the highest mean score).

    Below them is the scale of the colours, from 0 to 100 %. With a threshold, a first row shows the windows that none
    of the classes reaches it in.
    """
    ever = list(dict.fromkeys(timeline.scores.argmax(axis=1).tolist()))
    others = [i for i in (-timeline.scores.mean(axis=0)).argsort(kind="stable").tolist() if i not in ever]
    shown = (ever + others)[: max(top, min(len(ever), 12))]
    rows = [(timeline.class_names[index], timeline.scores[:, index]) for index in shown]
    if timeline.threshold > 0:
        is_none = np.array([label == NONE_OF_THESE for label in timeline.labels], dtype=timeline.scores.dtype)
        rows.insert(0, (NONE_OF_THESE, is_none))
    margin, row, plot = 210, 26, 760
    total = float(timeline.ends[-1])
    picture = Image.new("RGB", (margin + plot + 20, 44 + row * len(rows) + 30 + SCALE), PAPER)
    draw = ImageDraw.Draw(picture)
    _text(picture, (12, 10), f"{Path(timeline.path).name}, {total:.1f} s", 16, INK, picture.width - 20)
    # A moment has the mean score of the windows that cover it.
    moments = (np.arange(plot) + 0.5) / plot * total
    covers = (timeline.starts[:, None] <= moments) & (moments < timeline.ends[:, None])  # (n, plot)
    weight = covers / np.maximum(covers.sum(axis=0), 1)
    for number, (name, scores) in enumerate(rows):
        top_edge = 40 + number * row
        strip = heat_colours(scores @ weight)[None].repeat(row - 5, axis=0)
        picture.paste(Image.fromarray(strip), (margin, top_edge))
        _text(picture, (12, top_edge + 3), name, 13, INK, margin - 20)
    bottom = 40 + row * len(rows)
    for tick in np.linspace(0, total, 6):
        x = margin + round(tick / total * (plot - 1))
        draw.line([(x, bottom), (x, bottom + 4)], fill=FAINT)
        _text(picture, (min(x - 10, picture.width - 50), bottom + 6), f"{tick:.1f} s", 11, FAINT, 60)
    bar = plot // 4
    strip = heat_colours((np.arange(bar) + 0.5) / bar)[None].repeat(10, axis=0)
    top_edge = picture.height - SCALE + 8
    picture.paste(Image.fromarray(strip), (margin, top_edge))
    _text(picture, (12, top_edge - 2), "score", 11, FAINT, margin - 20)
    for share in (0, 0.5, 1):
        x = margin + round(share * (bar - 1))
        draw.line([(x, top_edge + 10), (x, top_edge + 13)], fill=FAINT)
        _text(picture, (x - 6, top_edge + 14), f"{100 * share:.0f} %", 11, FAINT, 60)
    return picture


def write_film(path: Path, pictures: Sequence[Image.Image], fps: float, least_seconds: float = 6.0) -> None:
    """Write pictures of one size with even sides as an H.264 film, repeated until it lasts `least_seconds`."""
    import av

    rounds = max(1, math.ceil(least_seconds * fps / len(pictures)))
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = pictures[0].width, pictures[0].height, "yuv420p"
        for picture in list(pictures) * rounds:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        container.mux(stream.encode())


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Stack pictures from top to bottom, aligned left."""
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def resized(frame: np.ndarray, side: int) -> Image.Image:
    """Return a frame (S, S, 3) as a square picture."""
    return Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC)


def _rows(
    insight: Insight, classes: int, tile: int, blocks: Sequence[int], shown: list[int]
) -> list[tuple[str, list[Image.Image]]]:
    """Return label and tiles of every row of one model."""
    frames = insight.frames
    rows = [("frames", [resized(frames[t], tile) for t in shown])]
    depth = len(insight.blocks)
    for number in blocks or sorted({(depth + 1) // 2, depth}):
        attention = insight.block(number).attention
        highest = float(attention[shown].max())
        tiles = [attention_overlay(frames[t], attention[t], tile, highest) for t in shown]
        rows.append((f"class token's\nattention, block {number}", tiles))
    block = insight.token_block
    if block is None:
        return rows
    if not block.seeds.all():  # if every patch is a seed, the row would repeat the frames
        tiles = [seeds_overlay(frames[t], block.seeds[t], tile) for t in shown]
        rows.append((f"seed tokens,\nblock {block.number}", tiles))
    merged = merged_frames(frames, block.tokens)
    label = f"{block.num_tokens} context tokens,\nblock {block.number}: a patch is the\nmean of its token's"
    rows.append((label, [resized(merged[t], tile) for t in shown]))
    tokens = chosen_tokens(block)
    colours = colours_of(tokens)
    tiles = [tokens_overlay(frames[t], block.tokens[t], colours, tile) for t in shown]
    rows.append((f"{len(tokens)} of them that\nfollow something,\none colour each", tiles))
    if insight.prompts:
        prompt = insight.prompts[-1]
        drawn = prompt.weights[insight.best_classes(classes)]
        span = float(drawn.min()), float(drawn.max())
        for index in insight.best_classes(classes):
            weights = prompt.weights[index]
            tiles = [prompt_overlay(frames[t], block.tokens[t], weights, tile, span) for t in shown]
            rows.append((f"prompts' attention:\n{_wrapped(insight.class_names[index], 22)}", tiles))
    return rows


def _row(label: str, tiles: list[Image.Image], margin: int, width: int) -> Image.Image:
    tile = tiles[0].width
    row = Image.new("RGB", (width, tile + GAP), PAPER)
    for i, line in enumerate(label.split("\n")):
        _text(row, (12, 8 + 17 * i), line, 13, INK if i == 0 else FAINT, margin - 14)
    for i, picture in enumerate(tiles):
        row.paste(picture, (margin + i * (tile + GAP), 0))
    return row


def _title(text: str, width: int, size: int) -> Image.Image:
    picture = Image.new("RGB", (width, size + 18), PAPER)
    _text(picture, (12, 8), text, size, INK, width - 20)
    return picture


def _text(picture: Image.Image, at: tuple[int, int], text: str, size: int, colour: Colour, width: int) -> None:
    """Write a line; cut it off with an ellipsis if it is wider than `width`."""
    font = ImageFont.load_default(size)
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    ImageDraw.Draw(picture).text(at, text, fill=colour, font=font)


def _wrapped(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:4])


def _columns(num_frames: int) -> list[int]:
    """Return evenly spaced frames, as many as a sheet has room for."""
    count = min(num_frames, MAX_COLUMNS)
    return [(2 * i + 1) * num_frames // (2 * count) for i in range(count)]


def _patches(values: np.ndarray, side: int) -> np.ndarray:
    """Enlarge values (P,) of patches to pixels (side, side)."""
    grid = round(len(values) ** 0.5)
    patch = np.arange(side) * grid // side
    return values.reshape(grid, grid)[patch[:, None], patch]


def _dimmed(picture: np.ndarray) -> np.ndarray:
    return 0.3 * picture + 0.25 * _grey(picture) + 20


def _grey(picture: np.ndarray) -> np.ndarray:
    return np.repeat(picture @ np.array([[0.299], [0.587], [0.114]]), 3, axis=-1)
