"""Videos that training leaves out: those of data.bad_videos, and those that end the process that decodes them."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from trainers import build
from trainers.errors import ConfigError
from trainers.run import run


def test_listed_videos_are_left_out_only_of_training(compose_run, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("03.mp4\n05.mp4\n12.mp4\nnot listed.mp4\n")
    run(compose_run(epochs=1, warmup_epochs=0, data__bad_videos=tmp_path / "bad.txt"))
    text = (tmp_path / "run" / "log.txt").read_text()
    assert "9 videos (2 left out by data.bad_videos)" in text
    assert "few_shot_shapes: 7 videos, 3 classes" in text, "validation keeps all that is listed"


def test_a_file_that_cannot_be_used_is_an_error(compose_run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.bad_videos=.*none.txt: cannot be read"):
        build.read_lists(compose_run(data__bad_videos=tmp_path / "none.txt"), ("train",))
    (tmp_path / "all.txt").write_text("".join(f"{index:02d}.mp4\n" for index in range(11)))
    with pytest.raises(ConfigError, match="leaves none of the 11 videos"):
        build.read_lists(compose_run(data__bad_videos=tmp_path / "all.txt"), ("train",))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("decord") is None, reason="decord is not installed on this platform")
def test_a_video_that_ends_its_decoder_costs_itself_alone(
    compose_run, tiny_root: Path, shared_videos: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_root, tmp_path / "data")
    for path in (tmp_path / "data" / "shapes" / "videos").iterdir():
        shutil.copy(shared_videos / "good" / "x_one_frame.mp4", path)  # decord reads none of the tiny ones
    video = tmp_path / "data" / "shapes" / "videos" / "03.mp4"
    shutil.copy(shared_videos.parent / "cases" / "decoder-abort" / "m033_atom.mp4", video)
    options = {"num_workers": 1, "data__decoder": "decord", "data__max_bad_share": 0.2}
    run(compose_run(epochs=1, warmup_epochs=0, data_root=tmp_path / "data", **options))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "03.mp4: cannot be read, replaced by another video: the decoder crashed on it (SIGABRT)" in log
    (line,) = (tmp_path / "run" / "crashed_videos.jsonl").read_text().splitlines()
    assert json.loads(line) == {"video": str(video), "reason": "SIGABRT"}
