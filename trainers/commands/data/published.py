"""Facts about the published annotation lists: names, classes and counts, and which pairs must not share a video."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedList:
    """One list: the label file of its classes, and, if known, its length and the range of videos per class."""

    labels: str
    videos: int | None = None
    per_class: tuple[int, int] | None = None
    required: bool = False  # a complete folder of published lists has it


SHOTS = (2, 4, 8, 16)
BASE2NOVEL_SEEDS = (1, 2, 3)
BASE2NOVEL_SHOTS = 16
TINY_PER_CLASS = 150
NUM_CLASSES = {"k400": 400, "hmdb51": 51, "ucf101": 101, "ssv2": 174}
# Classes that the published lists of HMDB-51 number the other way round than the published class file.
SWAPPED = (("kick", "kick ball"), ("sword", "sword exercise"))
NUM_BASE = {"k400": 200, "hmdb51": 26, "ucf101": 51, "ssv2": 87}
# Folder of a data set's lists, below the folder of lists and below base2novel_splits.
FOLDERS = {
    "k400": "k400_splits",
    "k600": "k600_splits",
    "hmdb51": "hmdb_splits",
    "ucf101": "ucf_splits",
    "ssv2": "ssv2_splits",
}


def base2novel_train(dataset: str, seed: int) -> str:
    """Return the name of a base-to-novel training list."""
    return f"base2novel_splits/{FOLDERS[dataset]}/fs_base_s{seed}_train.txt"


def _lists() -> dict[str, PublishedList]:
    lists = {
        "k400_splits/train.txt": PublishedList("k400", required=True),
        "k400_splits/train_tiny.txt": PublishedList("k400", 60_000, (150, 150)),
        "k400_splits/val.txt": PublishedList("k400", 19_877, (42, 50), required=True),
        "k600_splits/ZS_split1_K600_eval.txt": PublishedList("k600_split1", 14_084, required=True),
        "k600_splits/ZS_split2_K600_eval.txt": PublishedList("k600_split2", 13_978, required=True),
        "k600_splits/ZS_split3_K600_eval.txt": PublishedList("k600_split3", 14_136, required=True),
        "ssv2_splits/train.txt": PublishedList("ssv2", 168_913),
        "ssv2_splits/validation.txt": PublishedList("ssv2", 24_777, required=True),
    }
    for number, videos in enumerate((3_783, 3_734, 3_696), start=1):
        lists[f"hmdb_splits/val{number}.txt"] = PublishedList("hmdb51", 1_530, (30, 30), required=True)
        lists[f"ucf_splits/val{number}.txt"] = PublishedList("ucf101", videos, required=True)
    for dataset in ("hmdb51", "ucf101", "ssv2"):
        for shots in SHOTS:
            lists[f"{FOLDERS[dataset]}/train1_few_shot_{shots}.txt"] = PublishedList(
                dataset, shots * NUM_CLASSES[dataset], (shots, shots), required=True
            )
    halves = {
        "k400": (9_944, 9_933),
        "hmdb51": (780, 750),
        "ucf101": (2_088, 1_695),
        "ssv2": (17_562, 7_215),
    }
    for dataset, (base, novel) in halves.items():
        folder = f"base2novel_splits/{FOLDERS[dataset]}"
        for seed in BASE2NOVEL_SEEDS:
            lists[base2novel_train(dataset, seed)] = PublishedList(
                f"{dataset}_base", BASE2NOVEL_SHOTS * NUM_BASE[dataset], (16, 16), required=True
            )
        lists[f"{folder}/base_val.txt"] = PublishedList(f"{dataset}_base", base, required=True)
        lists[f"{folder}/novel_val.txt"] = PublishedList(f"{dataset}_novel", novel, required=True)
    for dataset, parts, val in (
        ("k400", ("temporal32", "static32"), "val"),
        ("ssv2", ("temporal18", "static16"), "validation"),
    ):
        for part in parts:
            labels = f"{dataset}_{part.rstrip('0123456789')}"
            for name in ("train", val):
                lists[f"temporal_static_splits/{FOLDERS[dataset]}/{name}_{part}.txt"] = PublishedList(labels)
    return lists


LISTS = _lists()


def _disjoint() -> list[tuple[str, str]]:
    pairs = [("k400_splits/train.txt", "k400_splits/val.txt"), ("k400_splits/train_tiny.txt", "k400_splits/val.txt")]
    pairs.append(("ssv2_splits/train.txt", "ssv2_splits/validation.txt"))
    for dataset, val in (("hmdb51", "val1"), ("ucf101", "val1"), ("ssv2", "validation")):
        folder = FOLDERS[dataset]
        pairs += [(f"{folder}/train1_few_shot_{shots}.txt", f"{folder}/{val}.txt") for shots in SHOTS]
    for dataset in NUM_CLASSES:
        folder = f"base2novel_splits/{FOLDERS[dataset]}"
        for seed in BASE2NOVEL_SEEDS:
            train = base2novel_train(dataset, seed)
            pairs += [(train, f"{folder}/base_val.txt"), (train, f"{folder}/novel_val.txt")]
    for folder, parts, val in (
        ("k400_splits", ("temporal32", "static32"), "val"),
        ("ssv2_splits", ("temporal18", "static16"), "validation"),
    ):
        root = f"temporal_static_splits/{folder}"
        pairs += [(f"{root}/train_{part}.txt", f"{root}/{val}_{part}.txt") for part in parts]
    return pairs


# (training list, list that it is validated or tested on)
DISJOINT = _disjoint()

# FROSTER's files in the authors' folder -> the label file of the classes that they rephrase.
FROSTER = {
    "kinetics_400_llm_labels.json": "k400",
    "kinetics_400_base_llm_labels.json": "k400_base",
    "kinetics_400_novel_llm_labels.json": "k400_novel",
    "ZS_split1_K600_llm.json": "k600_split1",
    "ZS_split2_K600_llm.json": "k600_split2",
    "ZS_split3_K600_llm.json": "k600_split3",
    "hmdb_51_llm_labels.json": "hmdb51",
    "hmdb_51_base_llm_labels.json": "hmdb51_base",
    "hmdb_51_novel_llm_labels.json": "hmdb51_novel",
    "ucf_101_llm_labels.json": "ucf101",
    "ucf_101_base_llm_labels.json": "ucf101_base",
    "ucf_101_novel_llm_labels.json": "ucf101_novel",
}
