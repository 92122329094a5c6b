"""A program imports only what it needs: checks the modules that are imported, not times."""

import subprocess
import sys
from pathlib import Path

HEAVY = {"torch", "torchvision", "timm", "decord", "av", "matplotlib", "tensorboard", "numpy", "PIL", "scipy"}


def imported_by(code: str, repository: Path, before: str = "") -> set[str]:
    """Return the modules that code imports in a new Python process, without those imported before."""
    code = f"import sys\n{before}\nold = set(sys.modules)\n{code}\nprint('MODULES', *set(sys.modules) - old)"
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split("MODULES ")[1].split())


def test_packages_import_nothing_heavy_until_they_are_used(repository: Path) -> None:
    names = imported_by("import tc_clip, video_datasets, trainers", repository)
    assert "trainers" in names and not names & HEAVY


def test_a_model_needs_torch_and_little_else(repository: Path) -> None:
    names = imported_by("import tc_clip; tc_clip.create_model", repository, before="import torch")
    assert "tc_clip.create" in names and not names & (HEAVY - {"numpy"})
    # They take a second each, and only compilation and distributed training need them.
    assert not {name for name in names if name.startswith(("torch._dynamo", "torch._inductor", "torch.distributed."))}
