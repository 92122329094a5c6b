"""Self-contained HTML pages of what a model attends to in a video, with a frame slider and a token picker."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainers.inference.visualize.draw import resized
from trainers.inference.visualize.trace import BlockInsight, ContextBlockInsight, Insight

ASSETS = Path(__file__).parent / "assets"
SHOWN_SIDE = 224  # pixels of a frame in a page
LISTED_CLASSES = 20  # best classes of each model in the page


def insight_page(insights: Sequence[Insight]) -> str:
    """Return the page of a video for one or more models with the same frames and classes."""
    first = insights[0]
    listed = sorted({index for insight in insights for index in insight.best_classes(LISTED_CLASSES)})
    row_of = {label: row for row, label in enumerate(listed)}
    document = {
        "title": Path(first.path).name,
        "classes": [first.class_names[index] for index in listed],
        "num_frames": len(first.frames),
        "frame_numbers": first.frame_numbers.tolist(),
        "frames": [data_url(resized(frame, SHOWN_SIDE)) for frame in first.frames],
        "models": [_model(insight, listed, row_of) for insight in insights],
    }
    return fill_in("insight.html", document)


def fill_in(template: str, document: dict[str, Any]) -> str:
    """Return a page of `assets/` with its data; no text in the data can end the script that holds it."""
    text = json.dumps(document, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return (ASSETS / template).read_text(encoding="utf-8").replace("__DATA__", text.replace("<", "\\u003c"))


def data_url(picture: Image.Image, quality: int = 85) -> str:
    """Return a picture as a JPEG inside a URL."""
    content = io.BytesIO()
    picture.convert("RGB").save(content, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def _model(insight: Insight, listed: list[int], row_of: dict[int, int]) -> dict[str, Any]:
    prompts = None
    if insight.prompts:
        last = insight.prompts[-1]
        weights = last.weights[listed]
        prompts = {
            "block": last.vision_block,
            "weights": [[round(float(weight), 5) for weight in row] for row in weights],
            "low": float(weights.min()),
            "high": float(weights.max()),
        }
    return {
        "name": insight.model,
        "grid": insight.grid_size,
        "scores": [round(float(insight.scores[index]), 5) for index in listed],
        "order": [row_of[label] for label in insight.best_classes(LISTED_CLASSES)],
        "blocks": [_block(block) for block in insight.blocks],
        "prompts": prompts,
    }


def _block(block: BlockInsight) -> dict[str, Any]:
    highest = float(block.attention.max()) or 1.0
    context = block if isinstance(block, ContextBlockInsight) else None
    return {
        "number": block.number,
        "attention": np.round(255 * block.attention / highest).astype(int).ravel().tolist(),
        "tokens": None if context is None else context.tokens.ravel().tolist(),
        "num_tokens": 0 if context is None else context.num_tokens,
    }
