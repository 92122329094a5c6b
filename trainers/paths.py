"""Finds the files that come with the code: configurations, class names, the program's own modules.

In a checkout `configs/` and `labels/` are folders beside `trainers/`. In an installed wheel they are folders inside it.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
IS_INSTALLED = (PACKAGE / "configs").is_dir()
REPOSITORY = None if IS_INSTALLED else PACKAGE.parent  # root of the checkout
CONFIGS = (PACKAGE if IS_INSTALLED else PACKAGE.parent) / "configs"
LABELS = CONFIGS.parent / "labels"
# The command that trains, as a user types it.
PROGRAM = "tc-clip-train" if IS_INSTALLED else "python main.py"


def user_folder() -> Path:
    """Return the folder in which commands create configurations and class names: the checkout or the working folder."""
    return REPOSITORY or Path()


def find_labels(path: str | Path) -> Path:
    """Return the file of class names that a configuration names.

    A relative path below `labels/` that does not exist in the working folder is taken from the files of this project.
    """
    path = Path(path)
    packaged = CONFIGS.parent / path
    if not path.is_absolute() and path.parts[:1] == ("labels",) and not path.exists() and packaged.is_file():
        return packaged
    return path
