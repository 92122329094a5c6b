"""Labels of every format that new_dataset reads: small files as other programs write them."""

import json
import shutil
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from trainers.commands.data.groups import split_records
from trainers.commands.data.listing import DataError
from trainers.commands.data.new_dataset import main
from trainers.commands.data.own_dataset import Options
from trainers.commands.data.own_videos import Source, collect, new_dataset
from trainers.commands.data.sources import FORMATS, detect
from video_datasets.annotations import VideoRecord, read_annotations, read_class_names
from video_datasets.decoding import decode

FPS = 10


def write_video(path: Path, seed: int, num_frames: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width = stream.height = 32
        for _ in range(num_frames):
            picture = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of four videos of three seconds, one of them in a folder."""
    root = tmp_path_factory.mktemp("own")
    for seed, name in enumerate(("a b.mp4", "c.mp4", "deep/d.mp4", "v_e.mp4")):
        write_video(root / name, seed)
    return root


def label_studio(*results: dict, video: str = "/data/upload/1/0a1b2c3d-c.mp4", number: int = 1) -> dict:
    return {"id": number, "data": {"video": video}, "annotations": [{"result": list(results)}]}


def timeline(start: int, end: int, label: str) -> dict:
    return {"type": "timelinelabels", "value": {"ranges": [{"start": start, "end": end}], "timelinelabels": [label]}}


CHOICE = {"type": "choices", "from_name": "action", "value": {"choices": ["run"]}}
CANCELLED = {"was_cancelled": True, "result": [{**CHOICE, "value": {"choices": ["no"]}}]}
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><id>3</id><name>first</name><size>30</size><mode>interpolation</mode>
<start_frame>0</start_frame><stop_frame>29</stop_frame><frame_filter/><source>c.mp4</source></task></meta>
<track id="0" label="run"><box frame="3" outside="0" xtl="1"/><box frame="7" outside="0"/><box frame="8" outside="1"/>
<box frame="20" outside="0"/><box frame="21" outside="0"/></track>
{tags}</annotations>"""
TAGS = '<tag label="jump" frame="10"/><tag label="jump" frame="11"/>'
WHOLE = "".join(f'<image id="{frame}" name="frame_{frame:06d}"><tag label="walk"/></image>' for frame in range(30))
ACTIVITYNET = {
    "version": "1.3",
    "database": {
        "e": {"subset": "training", "annotations": [{"segment": [0.5, 1.25], "label": "run"}]},
        "c": {"subset": "validation", "annotations": [{"segment": [1, 2], "label": "jump"}]},
        "hidden": {"subset": "testing"},
    },
}
DETECTION = {
    "_cls": "TemporalDetections",
    "detections": [{"_cls": "TemporalDetection", "label": "run", "support": [4, 8]}],
}
SAMPLES = {
    "samples": [
        {"filepath": "/home/me/data/c.mp4", "tags": ["train"], "events": DETECTION},
        {"filepath": "data/a b.mp4", "tags": ["val"], "events": DETECTION},
    ]
}
# name -> (file, content, kind, found); a frame lasts 0.1 s.
CASES: dict[str, tuple[str, object, str, dict[str, str]]] = {
    "csv": ("all.csv", "path,label\na b.mp4,run\ndeep/d.mp4,jump\n", "csv", {"a b.mp4": "run", "deep/d.mp4": "jump"}),
    "csv with segments": (
        "all.csv",
        "label;file;t_start;t_end\nrun;c.mp4;0;1.5\njump;c.mp4;1.5;3\nwalk;d.mp4;;\n",
        "csv",
        {"c.mp4#t=0,1.5": "run", "c.mp4#t=1.5,3": "jump", "deep/d.mp4": "walk"},
    ),
    "list": ("all.txt", "a b.mp4 run\nc.mp4 jump\n", "list", {"a b.mp4": "run", "c.mp4": "jump"}),
    "list with segments": ("all.txt", "a b.mp4\trun\t1\t2\n", "list", {"a b.mp4#t=1,2": "run"}),
    "frames list": ("all.txt", "c 30 run\nv_e 30 jump\n", "frames_list", {"c.mp4": "run", "v_e.mp4": "jump"}),
    "activitynet": ("all.json", ACTIVITYNET, "activitynet", {"v_e.mp4#t=0.5,1.25": "run", "c.mp4#t=1,2": "jump"}),
    "cvat": (
        "all.xml",
        CVAT.format(tags=TAGS),
        "cvat",
        {"c.mp4#t=0.3,0.8": "run", "c.mp4#t=2,2.2": "run", "c.mp4#t=1,1.2": "jump"},
    ),
    "cvat for images": ("all.xml", CVAT.split("<track")[0] + WHOLE + "</annotations>", "cvat", {"c.mp4": "walk"}),
    "label studio": (
        "all.json",
        [
            label_studio(CHOICE, video="s3://bucket/a%20b.mp4"),
            label_studio(timeline(1, 5, "jump"), timeline(6, 30, "run")),
            {**label_studio(), "annotations": [CANCELLED]},
        ],
        "label_studio",
        {"a b.mp4": "run", "c.mp4#t=0,0.5": "jump", "c.mp4#t=0.5,3": "run"},
    ),
    "label studio, small": (
        "all.json",
        [{"id": 1, "video": "/data/local-files/?d=deep/d.mp4", "action": "run", "annotator": 1, "annotation_id": 2}],
        "label_studio",
        {"deep/d.mp4": "run"},
    ),
    "fiftyone": (
        "labels.json",
        {"classes": ["run", "jump"], "labels": {"c": [{"label": 1, "support": [1, 10]}], "a b": 0, "d": None}},
        "fiftyone",
        {"c.mp4#t=0,1": "jump", "a b.mp4": "run"},
    ),
    "fiftyone, times": (
        "labels.json",
        {"classes": None, "labels": {"c": [{"label": "run", "timestamps": [0.25, 1.5]}]}},
        "fiftyone",
        {"c.mp4#t=0.25,1.5": "run"},
    ),
    "fiftyone, samples": (
        "samples.json",
        SAMPLES,
        "fiftyone",
        {"c.mp4#t=0.3,0.8": "run", "a b.mp4#t=0.3,0.8": "run"},
    ),
    "hugging face": ("metadata.jsonl", '{"file_name": "c.mp4", "label": "run"}\n', "hf", {"c.mp4": "run"}),
}


def written(folder: Path, name: str) -> tuple[Path, str, dict[str, str]]:
    file, content, kind, found = CASES[name]
    path = folder / file
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path, kind, found


@pytest.mark.parametrize("name", CASES)
def test_labels_of_every_format(videos: Path, tmp_path: Path, name: str) -> None:
    path, kind, expected = written(tmp_path, name)
    assert detect(path) == kind
    found = collect(videos, Source(path, check=False), Options())
    assert dict(found.videos) == expected
    if name in ("activitynet", "fiftyone, samples"):
        assert found.held == {"c.mp4#t=1,2" if name == "activitynet" else "a b.mp4#t=0.3,0.8"}


def test_every_format_has_a_case() -> None:
    assert {kind for _, _, kind, _ in CASES.values()} == set(FORMATS)


def test_folders_of_exports_are_recognised(videos: Path, tmp_path: Path) -> None:
    for name, file in (("cvat", "annotations.xml"), ("fiftyone", "labels.json")):
        folder = tmp_path / name
        folder.mkdir()
        written(folder, name)[0].rename(folder / file)
        assert detect(folder) == name
        assert dict(collect(videos, Source(folder, check=False), Options()).videos) == CASES[name][3]
    for part, label in (("train", "run"), ("val", "jump")):
        write_video(tmp_path / "hf" / part / "x.mp4", 0, 2)
        (tmp_path / "hf" / part / "metadata.csv").write_text(f"file_name,label\nx.mp4,{label}\n")
    found = collect(tmp_path / "hf", Source(tmp_path / "hf", check=False), Options())
    assert dict(found.videos) == {"train/x.mp4": "run", "val/x.mp4": "jump"} and found.held == {"val/x.mp4"}


def test_frames_become_the_same_frames(videos: Path, tmp_path: Path) -> None:
    """The segment of frames 3 to 7 has these frames, by the video's times and by a rate."""
    from video_datasets.video_files import open_video_files

    path, _, _ = written(tmp_path, "fiftyone, samples")
    every = decode(str(videos / "c.mp4"), np.arange)
    for fps in (None, float(FPS), FPS + 0.01):
        found = collect(videos, Source(path, fps=fps, check=False), Options())
        (name,) = [name for name, _ in found.videos if name.startswith("c")]
        assert np.array_equal(decode(open_video_files(videos).find(name), np.arange), every[3:8])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "all.csv",
            "path,label\nnone.mp4,run\n",
            "1 videos have no such file .*all.csv:2: none.mp4.*--skip-missing",
        ),
        ("all.csv", "path,label,start\nc.mp4,run,1\n", "start and end needs the other one"),
        ("all.csv", "path,label,start,end\nc.mp4,run,2,1\n", "all.csv:2: a segment from 2 to 1 s"),
        ("all.csv", "path,label,start,end\nc.mp4,run,x,1\n", "all.csv:2: 'x' is not a time in seconds"),
        ("all.csv", "path,label,split\nc.mp4,run,dev\n", "all.csv:2: the split 'dev' is unknown"),
        ("all.csv", "path,label,split\nc.mp4,run,train\n", "has the split train only; it needs train and val"),
        ("all.csv", "path,label\nc.mp4,run,more\n", "all.csv:2: has more cells than the header"),
        ("all.csv", "path,label\nc.mp4,run\nc.mp4,jump\n", "all.csv:3: 'c.mp4' has the classes 'run' and 'jump'"),
        ("all.txt", "c.mp4 0\n", "its labels are numbers; give their names with --class-names"),
        ("all.txt", "c.mp4 0\nc 30 1\n", "are its lines `path label` or `path frames label`"),
        ("all.json", [1], "not clear what wrote it; name its format with --kind"),
        ("all.json", "{", "all.json:1: is not JSON"),
        ("all.json", [label_studio(timeline(1, 90, "run"))], "ends at frame 89, c.mp4 has 30; .*--fps"),
        ("all.json", [label_studio(timeline(0, 9, "run"))], "is not a range of frames, from 1"),
        ("all.json", [{"id": 1, "data": "c.mp4", "annotations": []}], "all.json: is not an export of Label Studio"),
        ("all.json", [label_studio("run")], "is not an export of Label Studio"),
        ("all.json", [{"data": {"video": "c.mp4"}, "annotations": 5}], "is not an export of Label Studio"),
        ("samples.json", {"samples": [{"filepath": "c.mp4", "tags": 5}]}, "samples"),
        ("all.csv", "path,label\nhttp://[c.mp4,run\n", r"no such file .*http://\[c.mp4"),
        ("all.json", {"e": {"annotations": [{"segment": [0, 10**400], "label": "run"}]}}, "is not a time in seconds"),
        ("all.xml", "<!DOCTYPE x><annotations/>", "defines entities"),
        ("all.xml", "<annotations><version>1.0</version></annotations>", "is no export `CVAT for video 1.1`"),
        ("labels.json", {"labels": {"c": [{"label": "run", "support": [0, 3]}]}}, "is not two frames, from 1"),
        ("samples.json", {"samples": [{"filepath": "c.mp4"}]}, r"has the fields of labels \[\]"),
    ],
)
def test_wrong_sources_are_one_line(videos: Path, tmp_path: Path, file: str, content: object, message: str) -> None:
    (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        collect(videos, Source(tmp_path / file, check=False), Options())
    assert "\n" not in str(caught.value)


def test_an_interruption_has_no_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainers.commands.data.new_dataset.new_dataset", interrupted)
    assert main(["mine", "--videos", str(tmp_path)]) == 130


def test_what_the_user_says_counts(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("c.mp4 1\ngone.mp4 0\n")
    (tmp_path / "names.csv").write_text("id,name\n0,run\n1,jump\n")
    source = Source(tmp_path / "all.txt", class_names=tmp_path / "names.csv", skip_missing=True, check=False)
    found = collect(videos, source, Options())
    assert found.videos == [("c.mp4", "jump")] and "1 videos are missing and left out" in found.notes[0]
    (tmp_path / "all.csv").write_text("path,label,verb\nc.mp4,run,go\n")
    assert collect(videos, Source(tmp_path / "all.csv", field="verb", check=False), Options()).videos == [
        ("c.mp4", "go")
    ]


def test_a_split_never_divides_a_group() -> None:
    """Any seed: no group on both sides, every class on both."""
    rng = np.random.default_rng(0)
    records = [VideoRecord(f"{group}_{i}", int(rng.integers(3))) for group in range(24) for i in range(5)]
    groups = {record.path: record.path.split("_")[0] for record in records}
    for seed in range(20):
        train, val = split_records(records, ["a", "b", "c"], (seed,), 0.2, None, groups)
        assert not {groups[r.path] for r in train} & {groups[r.path] for r in val}
        assert len(train) + len(val) == len(records) and set(Counter(r.label for r in val)) == {0, 1, 2}
        assert 0.08 < len(val) / len(records) < 0.32


def test_groups_by_rule_folder_and_column(videos: Path, tmp_path: Path) -> None:
    rows = ["path,label,tape,split", "a b.mp4,run,1,", "c.mp4,run,1,", "deep/d.mp4,run,2,", "v_e.mp4,run,2,"]
    (tmp_path / "all.csv").write_text("\n".join(rows))

    def groups(rule: str | None) -> list[str]:
        return list(collect(videos, Source(tmp_path / "all.csv", group=rule, check=False), Options()).groups.values())

    assert groups("tape") == ["1", "1", "2", "2"]
    assert groups("folder") == [".", ".", "deep", "."]
    assert groups("(?:v_)?(.)") == ["a", "c", "d", "e"]
    assert groups(None) == ["a b.mp4", "c.mp4", "deep/d.mp4", "v_e.mp4"]
    with pytest.raises(DataError, match=r"--group x\(: is no regular expression"):
        groups("x(")
    with pytest.raises(DataError, match="finds nothing in 'a b.mp4'"):
        groups("v_")
    split = [f"{row[:-1]},{part}" for row, part in zip(rows[1:], ("train", "val", "train", "val"), strict=True)]
    (tmp_path / "all.csv").write_text("\n".join([rows[0], *split]))
    with pytest.raises(DataError, match="2 groups are on both sides of the given split"):
        groups("tape")


@pytest.fixture
def doubtful(videos: Path, tmp_path: Path) -> Path:
    """Return train/<class> and val/<class> with a leak, a copy of another class, a damaged file and two spellings."""
    root = tmp_path / "doubtful"
    for part in ("train", "val"):
        for number, label in enumerate(("Brush_hair", "brush hair ", "jump", "walk")):
            for i in range(2):
                write_video(root / part / label / f"{part}{number}{i}.mp4", 100 * (part == "val") + 10 * number + i, 3)
    shutil.copy(root / "train/jump/train20.mp4", root / "val/jump/copy.mp4")
    shutil.copy(root / "train/jump/train21.mp4", root / "train/walk/other.mp4")
    (root / "train/walk/bad.mp4").write_bytes(b"no video")
    return root


def test_doubts_are_reported_before_anything_is_written(
    doubtful: Path, tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture
) -> None:
    configs = shutil.copytree(repository / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("local.yaml"))
    arguments = ["mine", "--videos", str(doubtful), "--folders", "splits", "--output", str(tmp_path / "lists")]
    arguments += ["--configs", str(configs)]
    assert main([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "leak: 1 contents are in training and in validation of the given split, the first: train/jump/train20.mp4",
        "1 contents have copies in several classes, as 'train/jump/train21.mp4' and 'train/walk/other.mp4'",
        "1 files cannot be opened and are left out, the first: train/walk/bad.mp4",
        "differ in capitals, spaces or signs only: 'Brush hair', 'brush hair'",
        "      5  jump",
        "dry run: nothing was written",
    ):
        assert text in printed
    assert printed.index("leak:") < printed.index("train.txt")
    assert not (tmp_path / "lists").exists() and not list((configs / "data").glob("*mine*"))
    assert main(arguments) == 0
    listed = (tmp_path / "lists" / "train.txt").read_text()
    assert "bad.mp4" not in listed and "train/jump/train20.mp4" in listed


def test_copies_stay_on_one_side_of_a_drawn_split(videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "copies"
    for label in ("run", "jump"):
        for i in range(3):
            original = write_video(root / label / f"{i}.mp4", i + 10 * (label == "run"), 3)
            shutil.copy(original, root / label / f"copy{i}.mp4")
    for seed in range(5):
        made, _ = new_dataset("x", root, tmp_path / "lists", tmp_path, Options(seed=seed), dry_run=True)
        sides = {
            (r.path.split("/")[0], r.path[-5]): name for name in ("train.txt", "val.txt") for r in made.lists[name]
        }
        for name in ("train.txt", "val.txt"):
            assert all(sides[r.path.split("/")[0], r.path[-5]] == name for r in made.lists[name])


def test_segments_of_an_export_become_lists_that_are_read(videos: Path, tmp_path: Path, repository: Path) -> None:
    """Two classes in each of three long videos: no video is on both sides, and every item can be read."""
    from video_datasets.transforms import TestTransform
    from video_datasets.video_dataset import ItemKey, VideoDataset
    from video_datasets.video_files import open_video_files

    configs = shutil.copytree(repository / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("local.yaml"))
    names = ("a b.mp4", "c.mp4", "deep/d.mp4", "v_e.mp4")
    rows = [f"{name},{label},{start},{start + 1}" for name in names for label, start in (("run", 0), ("jump", 1.5))]
    (tmp_path / "all.csv").write_text("\n".join(["path,label,start,end", *rows]))
    arguments = ["--from", str(tmp_path / "all.csv"), "--output", str(tmp_path / "lists"), "--configs", str(configs)]
    assert main(["mine", "--videos", str(videos), *arguments]) == 0
    assert read_class_names(tmp_path / "lists" / "classes.csv") == ["jump", "run"]
    train, val = (read_annotations(tmp_path / "lists" / name, 2) for name in ("train.txt", "val.txt"))
    assert {len(train), len(val)} == {6, 2}
    assert not {r.path.split("#")[0] for r in train} & {r.path.split("#")[0] for r in val}
    dataset = VideoDataset(train + val, open_video_files(videos), TestTransform(16), num_frames=2)
    assert all(dataset[ItemKey(index)].valid for index in range(8))


def test_a_failed_write_leaves_nothing(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("path,label\na b.mp4,run\nc.mp4,run\ndeep/d.mp4,jump\nv_e.mp4,jump\n")
    (tmp_path / "lists").write_text("a file in the way")
    with pytest.raises(DataError, match="cannot be written"):
        new_dataset("x", videos, tmp_path / "lists", tmp_path / "configs", Options(), Source(tmp_path / "all.csv"))
    assert not [path for path in (tmp_path / "configs" / "data").iterdir()]


def test_saved_data_sets_of_hugging_face(videos: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    rows = {"video": [str(videos / "c.mp4"), str(videos / "a b.mp4")], "label": [1, 0]}
    features = datasets.Features({"video": datasets.Video(), "label": datasets.ClassLabel(names=["run", "jump"])})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    found = collect(videos, Source(tmp_path / "saved", check=False), Options())
    assert dict(found.videos) == {"c.mp4": "jump", "a b.mp4": "run"}


def test_several_labels_of_a_video(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = [f"m{number}.mp4" for number in range(12)]
    for number, name in enumerate(names):
        write_video(videos / name, 300 + number, 3)
    rows = ["path,label"]
    for number, name in enumerate(names):
        rows.append(f"{name},{'run;jump' if number % 2 else 'walk'}")
        if number % 3 == 0:
            rows.append(f"{name},indoors")
    source = tmp_path / "several.csv"
    source.write_text("\n".join(rows) + "\n")
    folder = tmp_path / "several"
    arguments = ["mine", "--videos", str(videos), "--from", str(source), "--output", str(folder)]
    arguments += ["--configs", str(tmp_path / "configs")]
    assert main([*arguments, "--dry-run"]) == 2
    assert "has the classes 'walk' and 'indoors'" in capsys.readouterr().err
    assert main([*arguments, "--several-labels", "--val-share", "0.25"]) == 0
    printed = capsys.readouterr().out
    assert "loss=sigmoid" in printed and "      6  run" in printed and "      4  indoors" in printed
    classes = read_class_names(folder / "classes.csv")
    assert classes == ["indoors", "jump", "run", "walk"]
    lists = [read_annotations(folder / name, 4, multi_label=True) for name in ("train.txt", "val.txt")]
    found = {record.path: {classes[label] for label in record.labels} for records in lists for record in records}
    assert found == {
        name: ({"run", "jump"} if number % 2 else {"walk"}) | ({"indoors"} if number % 3 == 0 else set())
        for number, name in enumerate(names)
    }
    for records in lists:
        assert {label for record in records for label in record.labels} == {0, 1, 2, 3}
    assert 2 <= len(lists[1]) <= 5
    assert [path.name for path in (tmp_path / "configs" / "data").iterdir()] == ["fully_supervised_mine.yaml"]
