"""Figures: fonts for every letter, and no formulas."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from trainers import testing
from trainers.reporting.pictures import BASE_FONT, font_families, save_figure, side_product
from trainers.reporting.write_results import sha256_if_there

LETTER = "\u6570"  # no font that comes with matplotlib has it


@pytest.fixture
def font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a font with one Chinese letter, a square, and return its name."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(LETTER): "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (700, 0), "square": (700, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "One Letter", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800)
    builder.setupPost()
    builder.save(tmp_path / "one.ttf")
    installed = list(font_manager.fontManager.ttflist)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", installed)
    font_manager.fontManager.addfont(tmp_path / "one.ttf")
    return "One Letter"


def test_a_font_that_has_the_letters_is_found(font: str, tmp_path: Path) -> None:
    assert font_families("red ring") == [BASE_FONT]
    assert font_families(f"red {LETTER}") == [BASE_FONT, font]
    with save_figure(tmp_path / "x.png", (2, 2), texts=[LETTER]) as figure:
        figure.text(0.2, 0.2, LETTER, fontsize=60)
    with Image.open(tmp_path / "x.png") as picture:
        num_dark = int((np.asarray(picture.convert("L")) < 50).sum())
    assert num_dark == pytest.approx((0.7 * 60 * 110 / 72) ** 2, rel=0.1), "a filled square, not the outline of a box"


@pytest.mark.parametrize("text", ["counting $$ bills", "$\\frac{$", "$a$ and \\b_", LETTER])
def test_any_text_can_be_drawn(text: str, tmp_path: Path) -> None:
    with save_figure(tmp_path / "x.png", (3, 2), texts=[text]) as figure:
        axes = figure.subplots()
        axes.set(title=text, xlabel=text)
        axes.set_xticks([0, 1], [text, "b"])
        axes.plot([0, 1], [0, 1], label=text)
        axes.legend()
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_a_failed_figure_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), save_figure(tmp_path / "x.png", (2, 2)):
        raise RuntimeError("no ink")
    assert list(tmp_path.iterdir()) == []


def test_whatever_fails_in_a_side_product_is_one_warning() -> None:
    warnings: list[str] = []
    for error in (ValueError("a\nb"), OSError(28, "No space left on device"), RecursionError(), KeyError("x")):
        with side_product("a.png", warnings.append):
            raise error
    assert warnings[0] == "a.png was not written: ValueError: a b" and len(warnings) == 4


def test_tables_that_fail_do_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise UnicodeEncodeError("utf-8", "x", 0, 1, "surrogates not allowed")

    monkeypatch.setattr(testing, "write_evaluation", fail)
    warnings: list[str] = []
    logging = SimpleNamespace(predictions=True, pictures=True)
    settings = SimpleNamespace(folder=tmp_path, logging=logging, videos_at_once=1, test_batch_size=1)
    job = SimpleNamespace(settings=settings, ranks=SimpleNamespace(is_main=True, device=torch.device("cpu")))
    tester = testing.Tester(job, SimpleNamespace(warning=warnings.append))  # type: ignore[arg-type]
    tester.write_files("val", SimpleNamespace(name="a"), None, None)  # type: ignore[arg-type]
    assert len(warnings) == 1 and warnings[0].startswith("predictions_val_a.csv, or what follows from it, was not")


def test_a_list_that_is_gone_after_the_training_has_no_hash(tmp_path: Path) -> None:
    assert sha256_if_there(tmp_path / "gone.txt") is None
    (tmp_path / "there.txt").write_bytes(b"")
    assert str(sha256_if_there(tmp_path / "there.txt")).startswith("e3b0c442")
