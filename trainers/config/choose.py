"""The keys of what a training chooses, and by what."""

from dataclasses import dataclass
from typing import Literal

from trainers.config.keys import key


@dataclass(frozen=True, kw_only=True)
class ChooseSettings:
    """By what a training makes its choices, and among what."""

    by: Literal["validation", "held_out"] = key(
        "What chooses the epoch and all below. `validation`: the protocol's validation list, as published. "
        "`held_out`: a part of the training list that is not trained: classes in `zero_shot`, else videos of each "
        "class; it follows from `seed` and the names. See [docs/methods.md](docs/methods.md#one-protocol-for-all)."
    )
    share: float = key("`held_out`: share of the classes, or of the videos of each class.", above=0, below=1)
    wise_ft: list[float] | None = key(
        "Weights of the ensemble to choose from (1: the fine-tuned weights alone); the chosen one is tested, in place "
        "of `wise_ft`. `null`: no choice.",
        at_least=0,
        at_most=1,
    )
    brownian_share: list[float] | None = key("Shares of Brownian scores to choose from.", above=0, below=1)
    templates: list[str] | None = key(
        "Sets of templates to choose from for the test, of `bare`, `photo`, `video`, `actions`; for models without "
        "learned prompts."
    )
