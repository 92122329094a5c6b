"""Prompt templates by name: texts with `{}` for the class name; the features of several are averaged, as CLIP does."""

from collections.abc import Sequence
from itertools import product

_MEDIA = ("photo", "video", "example", "demonstration")
_VERBS = ("", "doing ", "performing ", "practicing ")

TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "bare": ("{}",),
    "photo": ("a photo of a {}.",),
    "video": ("a video of a person {}.",),
    # Every medium with every verb: the name of an action can be a verb, a sport or an object.
    "actions": tuple(f"a {medium} of a person {verb}{{}}." for medium, verb in product(_MEDIA, _VERBS)),
}


def templates_of(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return templates from the name of a set, a template, or several templates; none for None.

    Raises:
        ValueError: if the name is unknown, or a template has no `{}` for the class name.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        if value in TEMPLATE_SETS:
            return TEMPLATE_SETS[value]
        if "{}" not in value:
            raise ValueError(f"templates must be one of {', '.join(TEMPLATE_SETS)}, or texts with {{}}, not {value!r}")
        return (value,)
    if not isinstance(value, Sequence):
        raise ValueError(f"templates must be text or a list of texts, not {value!r}")
    wrong = [text for text in value if not isinstance(text, str) or "{}" not in text]
    if wrong or not value:
        raise ValueError(
            f"templates need {{}} for the class name, there is none in {wrong[0] if wrong else 'no text'!r}"
        )
    return tuple(value)
