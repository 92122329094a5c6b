"""What a reader of a run's results must know about its labels: the plan and `results.json` show these lines."""

from collections.abc import Iterable

from trainers.config.settings import Settings
from trainers.reporting.write_results import WeightsFile
from trainers.video_lists import VideoList


def caveats(settings: Settings, lists: Iterable[VideoList], weights: WeightsFile | None) -> list[str]:
    """Return a line for each reason why numbers of this run may not compare with others.

    Args:
        weights: the evaluated checkpoint, or the one that a training starts from (`resume`); None: none.
    """
    found = []
    if weights is not None:
        config = weights.config
        trained = None if config is None else config.get("label_choice")
        if config is None and settings.label_choice == "llm":
            found.append(
                "labels=llm are sentences of this project; published (LLM) checkpoints are trained with FROSTER's: "
                "labels=froster (DATASETS.md) gives the published rows"
            )
        elif trained is not None and trained != settings.label_choice:
            found.append(f"the weights are trained with labels={trained}, these are labels={settings.label_choice}")
    for videos in lists:
        comparison = videos.label_comparison
        if comparison is not None and comparison.differing:
            found.append(f"{videos.name}: labels are {comparison}; of HMDB-51, the published lists are (DATASETS.md)")
    return found
