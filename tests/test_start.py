"""What is imported when: the start of a program should not pay for what it may never use. No clocks, but modules."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "timm", "decord", "av", "matplotlib", "tensorboard", "numpy", "PIL", "scipy"}


def imported_by(code: str, repository) -> set[str]:
    """Return the modules that a new Python has imported after running some code."""
    code += "\nimport sys; print('MODULES', *sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split("MODULES ")[1].split())


@pytest.mark.parametrize("package", ["tc_clip", "video_datasets", "trainers"])
def test_packages_cost_nothing_until_they_are_used(package, repository):
    assert not imported_by(f"import {package}", repository) & HEAVY


def test_a_model_needs_torch_and_little_else(repository):
    names = imported_by("import tc_clip; tc_clip.create_model", repository)
    assert "torch" in names
    assert not names & (HEAVY - {"torch", "numpy"})
    # A second each, and needed by compilation and distributed training alone.
    alone = imported_by("import torch", repository)
    new = {name for name in names - alone if name.startswith("torch.")}
    assert not {name for name in new if name.startswith(("torch._dynamo", "torch._inductor", "torch.distributed."))}


def test_help_and_mistakes_import_nothing_heavy(repository):
    code = (
        "import sys, runpy\n"
        "sys.argv = ['main.py', {arguments}]\n"
        "try:\n    runpy.run_path('main.py', run_name='__main__')\nexcept SystemExit:\n    pass"
    )
    for arguments in ("'--help'", "'-cn', 'zero_shot', 'data=zero_shot_k400', 'output=x', 'epochs=none'"):
        assert not imported_by(code.replace("{arguments}", arguments), repository) & (HEAVY - {"numpy"})
