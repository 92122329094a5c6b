"""The paper's numbers (ViT-B/16, percent), which tables and reports show next to the results of runs."""

from collections.abc import Mapping
from typing import Any

# Table, row ("" plain, LLM rephrased names, P from the zero-shot checkpoint), data set, measure.
Key = tuple[str, str, str, str]
Value = tuple[float, float | None]  # mean and standard deviation


_ZERO_SHOT = {
    "": {"hmdb51": (54.2, 0.7), "ucf101": (82.9, 0.6), "k600": (75.8, 0.5)},
    "LLM": {"hmdb51": (56.0, 0.3), "ucf101": (85.4, 0.8), "k600": (78.1, 1.0)},
}
_FEW_SHOT = {
    "": {
        "hmdb51": (57.3, 62.3, 67.3, 68.6),
        "ucf101": (85.9, 89.9, 92.5, 94.6),
        "ssv2": (7.3, 8.6, 9.3, 14.0),
    },
    "LLM": {"hmdb51": (58.6, 63.3, 65.5, 68.8), "ucf101": (86.8, 90.1, 92.0, 94.3)},
    "P": {
        "hmdb51": (65.3, 68.5, 71.4, 73.0),
        "ucf101": (94.1, 95.6, 96.6, 97.3),
        "ssv2": (8.7, 10.1, 12.1, 15.2),
    },
}
_BASE2NOVEL = {
    "": {
        "k400": (78.9, 63.6, 70.4),
        "hmdb51": (73.3, 54.1, 62.2),
        "ucf101": (95.5, 78.0, 85.9),
        "ssv2": (17.5, 13.4, 15.2),
    },
    "LLM": {"k400": (79.1, 65.4, 71.6), "hmdb51": (73.3, 59.1, 65.5), "ucf101": (95.4, 81.6, 88.0)},
    "P": {"hmdb51": (79.4, 58.3, 67.2), "ucf101": (97.5, 84.5, 90.5), "ssv2": (19.6, 15.6, 17.4)},
}


def _published() -> dict[Key, Value]:
    numbers: dict[Key, Value] = {
        ("zero_shot", row, dataset, "top-1"): value
        for row, values in _ZERO_SHOT.items()
        for dataset, value in values.items()
    }
    numbers |= {
        ("few_shot", row, dataset, f"K={shot}"): (value, None)
        for row, by_dataset in _FEW_SHOT.items()
        for dataset, accuracies in by_dataset.items()
        for shot, value in zip((2, 4, 8, 16), accuracies, strict=True)
    }
    numbers |= {
        ("base2novel", row, dataset, measure): (value, None)
        for row, by_dataset in _BASE2NOVEL.items()
        for dataset, accuracies in by_dataset.items()
        for measure, value in zip(("base", "novel", "HM"), accuracies, strict=True)
    }
    numbers["fully_supervised", "", "k400", "top-1"] = (85.2, None)
    numbers["fully_supervised", "", "k400", "top-5"] = (96.9, None)
    return numbers


PUBLISHED = _published()
DATASETS = {"k400": "K400", "hmdb51": "HMDB-51", "ucf101": "UCF-101", "ssv2": "SSv2", "k600": "K600"}


def published_numbers(config: Mapping[str, Any], row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the paper's numbers for a row of results as (row of the paper's table, number); often there is none."""
    protocol = str(config.get("protocol"))
    measure = {
        "zero_shot": "top-1",
        "few_shot": f"K={config.get('shot')}",
        "base2novel": "base" if row.get("part") == "val" else "novel",
        "fully_supervised": "top-1",
    }.get(protocol)
    data = str(config.get("data", {}).get("name", "")).removeprefix(f"{protocol}_")
    source = str(row.get("group", "")) if protocol == "zero_shot" else data.removesuffix("_llm")
    if measure is None or row.get("part") == "held_out" or (protocol == "zero_shot" and row.get("part") != "test"):
        return []
    found = []
    for kind, title in (("", "TC-CLIP"), ("LLM", "TC-CLIP, rephrased names"), ("P", "TC-CLIP, from zero-shot")):
        number = PUBLISHED.get((protocol, kind, source, measure))
        if number is not None:
            found.append((title, f"{number[0]}" + (f" ± {number[1]}" if number[1] is not None else "")))
    return found
