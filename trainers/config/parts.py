"""Which parts of training a configuration uses; what an unused part is set to changes nothing."""

from collections.abc import Mapping
from typing import Any

_LOSSES = ("residual_features", "features", "logits", "diversity")
PARTS = ("averaging", "objective", "step", "texts")


def used_parts(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the keys of the parts that a configuration (`Settings.to_dict`) uses, by part; earlier ones have none."""
    found = {name: dict(config[name]) for name in PARTS if name in config}
    return {name: keys for name, keys in found.items() if _is_used(name, keys)}


def without_unused_parts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the keys of unused parts."""
    used = used_parts(config)
    return {name: value for name, value in config.items() if name not in PARTS or name in used}


def describe_parts(config: Mapping[str, Any]) -> str:
    """Return the used parts and their keys in one line; empty if there are none."""
    return "; ".join(
        f"{name} ({', '.join(f'{key}={value}' for key, value in keys.items() if value is not None)})"
        for name, keys in used_parts(config).items()
    )


def _is_used(name: str, keys: Mapping[str, Any]) -> bool:
    if name == "objective":
        return any(keys[loss] for loss in _LOSSES)
    if name == "texts":
        return keys["train"] == "draw"
    return keys["name"] not in ("none", "plain")
