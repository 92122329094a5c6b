"""Bad input other than videos: lists, classes, checkpoints, configurations, environments.

Each case ends in one line, with status 2, that names the problem, its location and what to do. The user's files stay
unchanged. Videos are in tests/video_datasets/test_bad_videos.py.
"""

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainers import run as run_module
from trainers.config.command_line import one_line_errors
from trainers.run import run

LIST, LABELS = "lists/train_few_shot_2.txt", "labels/all.csv"


def snapshot(folder: Path) -> list[tuple]:
    found = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
        found.append((str(path), status.st_mode, status.st_size, content))
    return found


@pytest.fixture
def error_of(compose_run, capfd: pytest.CaptureFixture) -> Callable[..., str]:
    """Return a function that runs a configuration as the command line does and returns the line that it ends with."""

    def line_of(**options: object) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left, one_line_errors():
            run(compose_run(**{"epochs": 1, "warmup_epochs": 0, **options}))
        message = capfd.readouterr().err
        assert left.value.code == 2
        lines = [line for line in message.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and message.endswith(lines[0] + "\n") and "Traceback" not in message, message
        return lines[0].removeprefix("error: ")

    return line_of


def changed(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text.encode())


def first_line(replacement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(replacement + "\n" + path.read_text().split("\n", 1)[1])

    return change


def added(line: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text() + line + "\n")


FILES: dict[str, tuple[str, Callable[[Path], object], str | None]] = {
    "list: missing": (LIST, Path.unlink, r"train_few_shot_2\.txt: cannot be read: No such file or directory"),
    "list: empty": (LIST, changed(""), r"train_few_shot_2\.txt: the list has no videos"),
    "list: only blank lines": (LIST, changed("\n \n\n"), r"train_few_shot_2\.txt: the list has no videos"),
    "list: a folder": (LIST, lambda p: (p.unlink(), p.mkdir()), r"cannot be read: Is a directory"),
    "list: binary": (LIST, lambda p: p.write_bytes(b"\xff\xfe\x00"), r"is not UTF-8 text \(byte 0\); save it as UTF-8"),
    "list: label missing": (LIST, first_line("00.mp4"), r"txt:1: expected `path label`, found '00\.mp4'"),
    "list: label no number": (LIST, first_line("00.mp4 one"), r"txt:1: .* the label 'one' is not an integer"),
    "list: label too large": (
        LIST,
        first_line("00.mp4 3"),
        r"txt:1: label 3 of '00\.mp4' is out of range, labels are 0\.\.2",
    ),
    "list: label negative": (LIST, first_line("00.mp4 -1"), r"txt:1: label -1 of '00\.mp4' is out of range"),
    "list: listed twice": (LIST, added("03.mp4 0"), r"txt:12: '03\.mp4' is listed again; first at .*txt:4"),
    "list: two labels": (LIST, added("03.mp4 1"), r"txt:12: '03\.mp4' is listed with label 1, before with label 0"),
    "list: out of the root": (
        LIST,
        first_line("../../x.mp4 0"),
        r"'\.\./\.\./x\.mp4' leads outside the root \(data\.allow_outside",
    ),
    "list: absolute path": (LIST, first_line("/etc/passwd 0"), r"the listed path '/etc/passwd' leads outside the root"),
    "list: hidden way out": (LIST, first_line("a/../../../etc/passwd 0"), r"leads outside the root"),
    "list: Windows line ends": (LIST, lambda p: p.write_bytes(p.read_bytes().replace(b"\n", b"\r\n")), None),
    "list: byte order mark": (LIST, lambda p: p.write_bytes(b"\xef\xbb\xbf" + p.read_bytes()), None),
    "list: spaces and Unicode": (LIST, lambda p: spaced(p), None),
    "list: two files of a name": (
        LIST,
        lambda p: ambiguous(p),
        r"two files have its name: 'a/00\.mp4' and 'b/00\.mp4'; list the video with",
    ),
    "classes: missing": (LABELS, Path.unlink, r"all\.csv: cannot be read: No such file"),
    "classes: empty": (LABELS, changed(""), r"all\.csv: the file has no classes"),
    "classes: only a header": (LABELS, changed("id,name\n"), r"all\.csv: the file has no classes"),
    "classes: an id lacks": (
        LABELS,
        changed("id,name\n0,a\n1,b\n3,d\n"),
        r"the ids of 3 classes are 0\.\.2, but 2 is missing and 3 is used",
    ),
    "classes: an id twice": (
        LABELS,
        changed("id,name\n0,a\n1,b\n1,c\n"),
        r"csv:4: class 1 is named twice, 'b' and 'c'",
    ),
    "classes: a name twice": (
        LABELS,
        changed("id,name\n0,a\n1,b\n2,a\n"),
        r"csv:4: classes 0 and 2 share the name 'a'",
    ),
    "classes: an empty name": (LABELS, changed("id,name\n0,a\n1,\n2,c\n"), r"csv:3: class 1 has an empty name"),
    "classes: a comma unquoted": (
        LABELS,
        changed("id,name\n0,a, b\n1,c\n2,d\n"),
        r"csv:2: expected `id,name` \(quotes around",
    ),
    "classes: no csv": (LABELS, changed('id,name\n0,"a\n'), r"is not CSV"),
    "classes: fewer than labels": (
        LABELS,
        changed("id,name\n0,a\n1,b\n"),
        r"label 2 of .* is out of range, labels are 0\.\.1",
    ),
    "classes: a name too long": (
        LABELS,
        changed("id,name\n0,a\n1,b\n2," + "very " * 40 + "long\n"),
        r"very very .*context_length",
    ),
    "videos: root missing": ("videos", shutil.rmtree, r"no such folder or \.tar of videos \(set data_root="),
    "videos: root no tar": (
        "videos",
        lambda p: (shutil.rmtree(p), p.write_text("x")),
        r"is not a readable uncompressed \.tar",
    ),
    "videos: all missing": (
        "videos",
        lambda p: (shutil.rmtree(p), p.mkdir()),
        r"no such file, and none of its name below the root",
    ),
}


def spaced(path: Path) -> None:
    videos = path.parent.parent / "videos"
    (videos / "00.mp4").rename(videos / "a video – ünï 视频.mp4")
    path.write_text(path.read_text().replace("00.mp4", "a video – ünï 视频.mp4"), encoding="utf-8")


def ambiguous(path: Path) -> None:
    videos = path.parent.parent / "videos"
    for name in ("a", "b"):
        (videos / name).mkdir()
        shutil.copy(videos / "00.mp4", videos / name)
    (videos / "00.mp4").unlink()


@pytest.mark.parametrize("case", FILES)
def test_files_of_the_user(error_of, compose_run, tiny_root: Path, tmp_path: Path, case: str) -> None:
    name, change, expected = FILES[case]
    root = Path(shutil.copytree(tiny_root, tmp_path / "data"))
    change(root / "shapes" / name)
    before = snapshot(root)
    options = {"epochs": 1, "warmup_epochs": 0, "data_root": root}
    if expected is None:
        run(compose_run(**options))
    else:
        assert re.search(expected, message := error_of(**options)), message
    assert snapshot(root) == before


class Hostile:
    def __reduce__(self):
        return os.system, ("touch was_run",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, run_here) -> Path:
    output = tmp_path_factory.mktemp("trained")
    run_here(output=output, epochs=1, warmup_epochs=0)
    return output


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def other_sizes(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    name = next(iter(checkpoint["model"]))
    checkpoint["model"][name] = torch.zeros(3, 3)
    del checkpoint["checksum"]
    torch.save(checkpoint, path)


def flipped(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    next(iter(checkpoint["model"].values())).add_(1e-3)
    torch.save(checkpoint, path)


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], dict, str]] = {
    "missing": (Path.unlink, {}, r"best\.pth: no such file"),
    "empty": (lambda p: p.write_bytes(b""), {}, r"best\.pth: is empty"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), {}, r"best\.pth: is a folder, not a file"),
    "truncated": (truncated, {}, r"best\.pth: is cut off \(an interrupted copy or download\?\)"),
    "no checkpoint": (
        lambda p: p.write_text("hello"),
        {},
        r"best\.pth: cannot be read as weights \(it is neither safetensors nor a file that torch",
    ),
    "a list": (lambda p: torch.save([1, 2], p), {}, r"best\.pth: holds a list, not a dict"),
    "no weights": (
        lambda p: torch.save({"epoch": 1}, p),
        {},
        r"best\.pth: holds no weights: a checkpoint has them under 'model' \(it holds epoch\)",
    ),
    "damaged": (flipped, {}, r"best\.pth: is damaged \(its checksum does not match its content\)"),
    "other sizes": (
        other_sizes,
        {},
        r"not the weights of this vifi_clip: 1 of another size: \S+ \(3, 3\) instead of .*; give the trainer=",
    ),
    "another model": (
        lambda p: None,
        {"trainer": "tc_clip_tiny"},
        r"not the weights of this tc_clip: 16 missing: .*; give the trainer= and trainer\.options that it was",
    ),
    "code in a pickle": (
        lambda p: torch.save({"model": Hostile()}, p),
        {},
        r"holds a pickled object \S*system, which is not loaded",
    ),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(error_of, trained: Path, tmp_path: Path, monkeypatch, case: str) -> None:
    change, options, expected = CHECKPOINTS[case]
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(trained, tmp_path / "from"))
    change(folder / "best.pth")
    before = snapshot(folder)
    message = error_of(eval="val", resume=folder / "best.pth", **options)
    assert re.search(expected, message) and message.startswith(f"{folder}/best.pth: "), message
    assert snapshot(folder) == before and not (tmp_path / "was_run").exists()


VALUES: list[tuple[dict, str]] = [
    ({"epochs": 0}, r"^epochs=0: must be a whole number of at least 1$"),
    ({"keep": 0}, r"^keep=0: must be a whole number of at least 1$"),
    ({"save_minutes": 0}, r"^save_minutes=0: must be a number above 0 or null$"),
    ({"max_skipped": -1}, r"^max_skipped=-1: must be a whole number of at least 1$"),
    ({"data__isolate": 3}, r"^data\.isolate=3: must be true or false or auto$"),
    ({"data__isolate_memory_mb": 5}, r"^data\.isolate_memory_mb=5: must be a whole number of at least 256$"),
    ({"data__max_bad_share": 2}, r"^data\.max_bad_share=2: must be a number from 0 to 1$"),
    ({"lr": "fast"}, r"^lr=fast: must be a number above 0$"),
    (
        {"total_batch_size": 7},
        r"^total_batch_size=7 is not a multiple of batch_size=2; use 6 or 8, or another batch_size$",
    ),
    ({"input_size": 33}, r"33 is not a multiple of patch_size 8"),
    ({"shot": None}, r"^few_shot needs the number of training videos per class: give shot=2, 4, 8 or 16$"),
    ({"wise_ft": 0.5}, r"^wise_ft=0\.5: this model starts from random weights"),
    ({"best_metric": "top4"}, r"^best_metric=top4: must be one of metrics: top1, top5, mean_class$"),
    ({"metrics": ["top1", "recall"]}, r"^metrics: recall must be one of top1, top5 \(any topK\), mean_class, map"),
    ({"metrics": ["top1", "top1"]}, r"^metrics: top1 is listed twice$"),
    ({"metrics": ["map"], "best_metric": "map"}, r"^metrics: must have top1, which the tables compare$"),
    ({"best_metric": "top5"}, r"^best_metric=top5: has no value for 3 classes; choose another metric$"),
    ({"trainer__options__vision_depth": 2, "+trainer__options__dept": 2}, r"dept"),
    (
        {"device": "mps"},
        r"^device=mps: this (machine has no|build of PyTorch is not built for) Apple GPUs?; set device",
    ),
    (
        {"device": "cuda"},
        r"^device=cuda: there is no GPU that CUDA can use here \(nvidia-smi\?\); set device=cpu or auto$",
    ),
]


@pytest.mark.parametrize(
    ("options", "expected"), VALUES, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
def test_configurations(error_of, tmp_path: Path, options: dict, expected: str) -> None:
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if options.get("device") in available and available[options["device"]]():
        pytest.skip("there is such a GPU")
    with_defaults = {"epochs": 1, **options}
    assert re.search(expected, message := error_of(**with_defaults)), message
    assert not (tmp_path / "run").exists() or list((tmp_path / "run").iterdir()) == []


def test_output_is_a_file(error_of, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert re.search(r"^output=\S+/run: is a file; name a folder$", error_of())
    assert (tmp_path / "run").read_text() == "mine"


def test_output_cannot_be_written(error_of, tmp_path: Path, monkeypatch) -> None:
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)  # as root nothing is refused for permission bits
    assert re.search(r"^output=\S+/run: cannot be written: Permission denied$", error_of())


def test_out_of_gpu_memory(error_of, monkeypatch) -> None:
    def no_memory(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity")

    monkeypatch.setattr(run_module.Trainer, "_loss_sum", no_memory)
    expected = r"^out of GPU memory: not even one video fits: set trainer\.checkpointing=true, .*: CUDA out of"
    assert re.search(expected, error_of())


def test_one_bad_video_in_a_small_test_list_is_reported(compose_run, error_of, tiny_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_root, tmp_path / "data"))
    (root / "shapes" / "videos" / "12.mp4").write_bytes(b"broken")
    (row,) = run(compose_run(epochs=1, warmup_epochs=0, data_root=root))
    assert (row.videos, row.unreadable) == (6, 1)
    (root / "shapes" / "videos" / "13.mp4").write_bytes(b"broken")
    message = error_of(data_root=root, output=tmp_path / "second")
    assert re.search(r"^2 of 7 listed videos .*cannot be read.*12\.mp4.*data\.max_bad_share", message), message
    (row,) = run(compose_run(epochs=1, warmup_epochs=0, data_root=root, data__max_bad_share=0.3, output=tmp_path / "3"))
    assert (row.videos, row.unreadable) == (5, 2)


def test_the_table_is_long_enough() -> None:
    assert len(FILES) + len(CHECKPOINTS) + len(VALUES) + 4 >= 60
