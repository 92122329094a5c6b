"""Where the configurations and the class names of the data sets are."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "configs"
LABELS = REPOSITORY / "labels"
