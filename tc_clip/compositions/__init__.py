"""The models by name. Each module here holds one `MODEL`: a new file is a new model, and nothing else lists it."""

import importlib
import pkgutil
from functools import cache

from tc_clip.compositions.base import Composition

_FIRST = ("tc_clip", "vifi_clip", "vanilla_clip")  # the paper's model and its two baselines


@cache
def compositions() -> dict[str, Composition]:
    """Return every model by name: the paper's first, then the others in alphabetical order."""
    modules = [name for _, name, _ in pkgutil.iter_modules(__path__) if name != "base"]
    found = [importlib.import_module(f"{__name__}.{name}").MODEL for name in modules]
    by_name = {model.name: model for model in found}
    rest = sorted(by_name.keys() - set(_FIRST))
    return {name: by_name[name] for name in (*_FIRST, *rest)}
