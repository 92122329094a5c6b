"""`visualize` as a user runs it."""

from pathlib import Path

import pytest
from PIL import Image

from trainers.commands import visualize


def test_two_models_side_by_side(tiny_checkpoints, shape_clips, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    arguments = [str(shape_clips[0]), str(tmp_path / "bad.mp4"), "--checkpoint", str(tiny_checkpoints["tc_clip"])]
    arguments += ["--compare", str(tiny_checkpoints["vifi_clip"]), "--device", "cpu", "--output", str(tmp_path / "out")]
    arguments += ["--class", "red square moving sideways", "--class", "a dog", "--blocks", "1", "3", "--side", "64"]
    assert visualize.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "bad.mp4: cannot be read: " in shown and "tc_clip: " in shown and "vifi_clip: " in shown
    made = {path.suffix: path for path in (tmp_path / "out").iterdir()}
    assert set(made) == {".png", ".mp4", ".html"}
    assert {path.stem for path in made.values()} == {shape_clips[0].stem}
    with Image.open(made[".png"]) as sheet:
        assert sheet.width > 600 and sheet.height > 1000
    assert all(path.stat().st_size > 5000 for path in made.values())


def test_one_class_and_one_kind(tiny_checkpoints, shape_clips, tmp_path: Path) -> None:
    arguments = [str(shape_clips[0]), "--checkpoint", str(tiny_checkpoints["tc_clip"]), "--class", "a dog"]
    assert visualize.main([*arguments, "--kinds", "png", "--output", str(tmp_path), "--device", "cpu"]) == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".png"]


def test_wrong_blocks(tiny_checkpoints, shape_clips, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = [str(shape_clips[0]), "--checkpoint", str(tiny_checkpoints["tc_clip"]), "--class", "a dog"]
    with pytest.raises(SystemExit):
        visualize.main([*arguments, "--blocks", "4", "--output", str(tmp_path)])
    assert "the model has blocks 1 to 3" in capsys.readouterr().err
