"""The five data sets in miniature: folders, file names and official annotation files as the real ones have them.

A class of a data set is one of the shapes' classes, so a model can learn it. Label files are in the layout of the
project's own, with a few of the real classes each, chosen for their oddities.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from video_datasets.shapes.classes import Settings, all_classes
from video_datasets.shapes.drawing import render

NUM_TRAIN, NUM_VAL = 3, 2
SHAPES = Settings(side=48, min_frames=9, max_frames=9, train_clips=16)
CLASSES = {
    # Sorted, both would come the other way round.
    "ucf101": ["Hammering", "HammerThrow", "HandstandPushups", "YoYo"],
    "hmdb51": ["kick ball", "kick", "sword exercise", "sword"],
    "ssv2": [
        "Holding something next to something",
        "Moving something and something so they collide with each other",
        "Pushing something from left to right",
        "Wiping something off of something",
    ],
    "k400": ["abseiling", "petting animal (not cat)", "tai chi", "zumba"],
    "k600": ["acting in play", "carving ice", "shredding paper", "tie dying", "wading through water", "yarn spinning"],
}
SUBSETS = {
    "ucf101_base": ["HammerThrow", "YoYo"],
    "ucf101_novel": ["Hammering", "HandstandPushups"],
    "hmdb51_base": ["sword exercise", "sword"],
    "hmdb51_novel": ["kick ball", "kick"],
    "ssv2_base": CLASSES["ssv2"][2:],
    "ssv2_novel": CLASSES["ssv2"][:2],
    "ssv2_temporal": CLASSES["ssv2"][2:3],
    "ssv2_static": CLASSES["ssv2"][:1],
    "k400_base": ["tai chi", "zumba"],
    "k400_novel": ["abseiling", "petting animal (not cat)"],
    "k400_temporal": ["tai chi"],
    "k400_static": ["abseiling"],
    "k600_split1": CLASSES["k600"][:3],
    "k600_split2": CLASSES["k600"][1:4],
    "k600_split3": CLASSES["k600"][3:],
}


@dataclass(frozen=True)
class Miniature:
    """Folders of the annotation files and videos of every data set, of the labels and of rephrased labels."""

    root: Path

    def annotations(self, dataset: str) -> Path:
        return self.root / "annotations" / dataset

    def videos(self, dataset: str) -> Path:
        return self.root / "videos" / dataset

    @property
    def labels(self) -> Path:
        return self.root / "labels"


def make_miniature(root: Path) -> Miniature:
    """Write the whole miniature below a folder."""
    mini = Miniature(root)
    for name, classes in {**CLASSES, **SUBSETS}.items():
        _write_names(mini.labels / f"{name}.csv", classes)
        if not name.startswith("ssv2"):
            _write_names(mini.labels / "llm" / f"{name}.csv", [f"{c}: a person is busy with {c}" for c in classes])
    for make in (_ucf101, _hmdb51, _ssv2, _k400, _k600):
        make(mini)
    return mini


def write_clip(path: Path, label: int, number: int, num_frames: int | None = None) -> None:
    """Write one clip of a class of the shapes, in the codec that the data set of its suffix has."""
    # Steps of 5 and 1: other colours, shapes and motions.
    frames = render(all_classes()[label * 5 % 48], number, SHAPES)[:num_frames]
    codec, rate = {".avi": ("mpeg4", 25), ".webm": ("libvpx", 12), ".mp4": ("libx264", 25)}[path.suffix]
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"libvpx": {"deadline": "realtime", "cpu-used": "8"}, "libx264": {"preset": "ultrafast"}}.get(codec, {})
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.thread_count = 1
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())


def _write_names(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("id", "name"), *enumerate(names)])


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _ucf101(mini: Miniature) -> None:
    """Class folders in camel case; one class's files are spelled otherwise than its folder."""
    folder = mini.annotations("ucf101") / "ucfTrainTestlist"
    names = CLASSES["ucf101"]
    _write(folder / "classInd.txt", [f"{label + 1} {name}" for label, name in enumerate(names)])
    videos = {}
    for label, name in enumerate(names):
        stem = name.replace("Handstand", "HandStand")
        videos[label] = [f"{name}/v_{stem}_g{number + 1:02d}_c01.avi" for number in range(NUM_TRAIN + NUM_VAL)]
        for number, video in enumerate(videos[label]):
            write_clip(mini.videos("ucf101") / video, label, number)
    for split in range(3):
        train, val = [], []
        for label, listed in videos.items():
            turned = listed[split:] + listed[:split]
            train += [f"{video} {label + 1}" for video in turned[:NUM_TRAIN]]
            val += turned[NUM_TRAIN:]
        _write(folder / f"trainlist0{split + 1}.txt", train)
        _write(folder / f"testlist0{split + 1}.txt", val)


def _hmdb51(mini: Miniature) -> None:
    """Class folders; file names with spaces and `#`; one video of every class is in no split."""
    folder = mini.annotations("hmdb51") / "testTrainMulti_7030_splits"
    for label, name in enumerate(CLASSES["hmdb51"]):
        stem = name.replace(" ", "_")
        titles = ["#20 Rhythm", "April_09", "Pippi & Michel", "A Beautiful Mind 2", "(HQ) Best of", "unused"]
        videos = [f"{title}_{stem}_u_nm_np1_fr_goo_{number}.avi" for number, title in enumerate(titles)]
        for number, video in enumerate(videos):
            write_clip(mini.videos("hmdb51") / stem / video, label, number)
        for split in range(3):
            used = videos[:-1]
            train = {used[(split + index) % len(used)] for index in range(NUM_TRAIN)}
            lines = [f"{video} {1 if video in train else 2} " for video in used] + [f"{videos[-1]} 0 "]
            _write(folder / f"{stem}_test_split{split + 1}.txt", lines)


def _ssv2(mini: Miniature) -> None:
    """Numbered files in one folder; templates with brackets around their placeholders."""
    folder = mini.annotations("ssv2")
    folder.mkdir(parents=True)
    templates = [name.replace("something", "[something]") for name in CLASSES["ssv2"]]
    parts = {"train": NUM_TRAIN, "validation": NUM_VAL}
    number = 0
    for part, count in parts.items():
        entries = []
        for label, template in enumerate(templates):
            for clip in range(count):
                video = str(14498 + 7 * number)
                write_clip(mini.videos("ssv2") / f"{video}.webm", label, clip + (NUM_TRAIN if part != "train" else 0))
                words = template.replace("[something]", "a cup").lower()
                entries.append({"id": video, "label": words, "template": template, "placeholders": ["a cup"]})
                number += 1
        (folder / f"something-something-v2-{part}.json").write_text(json.dumps(entries))
    ids = {name.replace("[", "").replace("]", ""): str(label) for label, name in enumerate(templates)}
    (folder / "something-something-v2-labels.json").write_text(json.dumps(ids))


def _kinetics(mini: Miniature, dataset: str, parts: dict[str, int]) -> None:
    folder = mini.annotations(dataset)
    folder.mkdir(parents=True)
    for part, count in parts.items():
        with (folder / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "youtube_id", "time_start", "time_end", "split", "is_cc"])
            for label, name in enumerate(CLASSES[dataset]):
                for number in range(count):
                    youtube_id = f"-{dataset}{part[0]}_{label}{number}"[:11].ljust(11, "x")
                    writer.writerow([name, youtube_id, 10 * number, 10 * number + 10, part, 0])
                    video = f"{youtube_id}_{10 * number:06d}_{10 * number + 10:06d}.mp4"
                    clip = number + (0 if part == "train" else NUM_TRAIN)
                    write_clip(mini.videos(dataset) / part / video, label, clip)


def _k400(mini: Miniature) -> None:
    """Identifiers with a leading `-`; one video came as a replacement, and one is gone from the site."""
    _kinetics(mini, "k400", {"train": NUM_TRAIN + 1, "val": NUM_VAL})
    train = sorted((mini.videos("k400") / "train").iterdir())
    target = mini.videos("k400") / "replacement" / "replacement_for_corrupted"
    target.mkdir(parents=True)
    train[0].rename(target / train[0].name)
    train[-1].unlink()


def _k600(mini: Miniature) -> None:
    _kinetics(mini, "k600", {"val": NUM_VAL})
