"""Figures with any text in them, and what happens when a picture or a page fails: one warning."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.errors import ConfigError
from trainers.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE_FONT = "DejaVu Sans"  # comes with matplotlib


@contextmanager
def side_product(name: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Write a picture or a page that the program can do without: any failure of the block is one warning."""
    try:
        yield
    except Exception as error:
        reason = error if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        warn(f"{name} was not written: {' '.join(str(reason).split())}")


@contextmanager
def save_figure(path: Path, size: tuple[float, float], texts: Iterable[str] = ()) -> Iterator["Figure"]:
    """Yield a figure of a size in inches, and save it when the block ends.

    Text is drawn as it is: `$` starts no formula.

    Args:
        path: with the ending of the format, as .png.
        texts: names from outside that are drawn. Fonts that have their letters are searched for.
    """
    # Without pyplot: it keeps figures and chooses a backend for the whole process.
    import matplotlib
    from matplotlib.figure import Figure

    fonts = font_families("".join(texts))
    with (
        matplotlib.rc_context({"text.parse_math": False, "text.usetex": False, "font.family": fonts}),
        warnings.catch_warnings(),
    ):
        # A letter that no installed font has is drawn as a box; a warning for each would not help.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110, format=path.suffix[1:])


def font_families(text: str) -> list[str]:
    """Return the default font, and installed ones with the letters that it lacks, as Chinese or Hindi ones."""
    from matplotlib import font_manager

    families = [BASE_FONT]
    missing = set(map(ord, text)) - _characters(font_manager.findfont(BASE_FONT))
    for font in font_manager.fontManager.ttflist:
        if not missing:
            break
        # "Last Resort" has a box for every character.
        if font.name not in families and not font.name.startswith("Last Resort") and missing & _characters(font.fname):
            families.append(font.name)
            missing -= _characters(font.fname)
    return families


def _characters(path: str) -> set[int]:
    from matplotlib import font_manager

    return set(font_manager.get_font(path).get_charmap())
