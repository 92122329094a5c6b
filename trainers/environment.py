"""What the numbers of a run can depend on besides its configuration: versions, code, machine."""

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from trainers.config.secrets import hide_secrets

PACKAGES = (
    *("tc-clip", "torch", "torchvision", "timm", "numpy"),
    *("hydra-core", "omegaconf", "av", "decord", "safetensors"),
)


def environment(repository: Path | None, device: torch.device, world_size: int) -> dict[str, Any]:
    """Return command, commit, versions and machine, as `environment.json` holds them."""
    return {
        "command": [hide_secrets(argument) for argument in sys.argv],
        "git": _git_state(repository),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "processes": world_size,
        "threads": torch.get_num_threads(),
    }


def package_versions() -> dict[str, str | None]:
    """Return the versions of the packages that numbers can depend on, None for those that are not installed."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _git_state(repository: Path | None) -> dict[str, str | bool] | None:
    """Return the commit and whether files differ from it, or None outside a checkout or without git."""
    if repository is None:
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(repository), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
