"""Features of videos and texts, and rankings: equal to the model's by hand, in files and on the command line."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.nn.functional as F

import tc_clip
from trainers.commands import embed as embed_command
from trainers.commands import search as search_command
from trainers.errors import ConfigError
from trainers.inference import embed as module
from trainers.inference.embed import embed, load_features, load_model_and_transform, rank, save_features
from trainers.inference.reading import FileReader, transform_of
from video_datasets.transforms import normalize

TEXTS = ["red square moving sideways", "a dog jumps"]
FP32 = {"precision": "fp32", "num_workers": 0, "batch_size": 2}
MODELS = ["tc_clip", "vifi_clip"]  # with prompts that attend to the video, and without


@pytest.fixture(scope="module")
def loaded(tiny_checkpoints: dict[str, Path]):
    return {name: load_model_and_transform(tiny_checkpoints[name], TEXTS, device="cpu") for name in MODELS}


def by_hand(loaded, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normalised features of a video (E,) and of the texts for it (C, E)."""
    model, transform = loaded
    with torch.no_grad():
        output = model.encode_video(transform(path))
        texts = model.encode_classes(output)
    video = F.normalize(output.class_tokens.mean(1), dim=-1)[0]
    return video, F.normalize(texts[0] if texts.dim() == 3 else texts, dim=-1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_features_are_those_of_the_model(loaded, name: str, suffix: str, shape_clips, tmp_path: Path) -> None:
    model, _ = loaded[name]
    (tmp_path / "bad.mp4").write_text("no video")
    seen = []
    features = embed(
        model,
        [shape_clips[0], tmp_path / "bad.mp4", *shape_clips[1:3]],
        texts=True,
        progress=lambda done, unread: seen.append((done, [path for path, _ in unread])),
        **FP32,
    )
    assert features.paths == tuple(map(str, shape_clips[:3]))
    assert seen == [(2, [str(tmp_path / "bad.mp4")]), (4, [])]
    save_features(tmp_path / f"f.{suffix}", features)
    assert sorted(os.listdir(tmp_path)) == sorted(["bad.mp4", f"f.{suffix}"])
    path = tmp_path / f"f.{suffix}"
    arrays = np.load(path) if suffix == "npz" else safetensors.numpy.load_file(path)
    for row, clip in enumerate(shape_clips[:3]):
        video, texts = by_hand(loaded[name], clip)
        assert arrays["video_features"][row] == pytest.approx(video.numpy(), abs=1e-5)
        of_file = arrays["text_features"][row] if name == "tc_clip" else arrays["text_features"]
        assert of_file == pytest.approx(texts.numpy(), abs=1e-5)
    again = load_features(path)
    assert (again.paths, again.texts, again.fingerprint) == (features.paths, tuple(TEXTS), features.fingerprint)
    assert again.context.keys() == set(model.context_blocks)
    assert all(torch.equal(again.context[block], features.context[block]) for block in again.context)


@pytest.mark.parametrize("name", MODELS)
def test_the_ranking_is_that_of_sorted_cosines(loaded, name: str, shape_clips, monkeypatch) -> None:
    monkeypatch.setattr(module, "RANKED_AT_ONCE", 2)
    model, _ = loaded[name]
    order, cosines = rank(model, embed(model, shape_clips, **FP32), TEXTS[1])
    expected = [float(video @ texts[1]) for video, texts in (by_hand(loaded[name], clip) for clip in shape_clips)]
    assert cosines.tolist() == pytest.approx(expected, abs=1e-5)
    assert order == sorted(range(len(expected)), key=lambda index: -cosines[index])
    assert len(set(order)) == len(shape_clips) and model.class_names == tuple(TEXTS)


def test_features_that_do_not_fit_the_model(loaded, shape_clips, tmp_path: Path, monkeypatch) -> None:
    model, _ = loaded["tc_clip"]
    bare = embed(model, shape_clips[:1], context=False, **FP32)
    with pytest.raises(ConfigError, match="lack the context tokens"):
        rank(model, bare, "a dog")
    with pytest.raises(ConfigError, match="other weights"):
        rank(loaded["vifi_clip"][0], bare, "a dog")
    with pytest.raises(ConfigError, match="tokens"):
        rank(model, embed(model, shape_clips[:1], **FP32), "word " * 90)
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match="the features of 5 videos need"):
        embed(model, shape_clips, texts=True, **FP32)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_files_that_are_no_features(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"f.{suffix}"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_features(path)
    for content in (b"", b"PK\x03\x04 broken", b"\x08\0\0\0\0\0\0\0{}"):
        path.write_bytes(content)
        with pytest.raises(ConfigError) as left:
            load_features(path)
        assert str(path) in str(left.value) and "\n" not in str(left.value)
    array = np.zeros((2, 3), dtype=np.float32)
    np.savez(tmp_path / "f.npz", x=array)
    safetensors.numpy.save_file({"x": array}, tmp_path / "f.safetensors")
    with pytest.raises(ConfigError, match="is no file of tc-clip embed"):
        load_features(path)


def test_an_interrupted_write_keeps_the_old_file(loaded, shape_clips, tmp_path: Path, monkeypatch) -> None:
    features = embed(loaded["vifi_clip"][0], shape_clips[:1], **FP32)
    path = tmp_path / "f.npz"
    path.write_bytes(b"old")

    def full(file, **arrays) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(ConfigError, match="No space left"):
        save_features(path, features)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["f.npz"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_of_any_precision_are_those_of_the_checkpoint(
    precision: str, tiny_checkpoints, shape_clips, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The weights change format while videos are encoded, which must not make them other weights."""
    model = ["--checkpoint", str(tiny_checkpoints["tc_clip"]), "--device", "cpu", "--workers", "0"]
    file = tmp_path / "features.npz"
    assert embed_command.main([str(shape_clips[0]), *model, "--precision", precision, "--output", str(file)]) == 0
    assert search_command.main(["red square", str(file), *model]) == 0
    assert Path(shape_clips[0]).name in capsys.readouterr().out


def test_commands(tiny_checkpoints, loaded, shape_clips, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    options = ["--checkpoint", str(tiny_checkpoints["tc_clip"]), "--device", "cpu", "--precision", "fp32"]
    options += ["--workers", "0"]
    videos = [*map(str, shape_clips), str(tmp_path / "bad.mp4")]
    file = tmp_path / "new" / "f.safetensors"
    assert embed_command.main([*videos, *options, "--texts", *TEXTS, "--output", str(file)]) == 0
    shown = capsys.readouterr().err
    assert "bad.mp4: cannot be read: " in shown and "5 videos in" in shown and "1 could not be read" in shown
    assert search_command.main([TEXTS[1], *videos, *options, "--csv", str(tmp_path / "r.csv")]) == 0
    of_videos = capsys.readouterr().out
    assert search_command.main([TEXTS[1], str(file), *options, "--top", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == of_videos.splitlines()[:3]
    assert search_command.main([TEXTS[1], str(file), *options, "--precision", "fp64"]) == 0
    assert capsys.readouterr().out.split()[2] == of_videos.split()[2]
    with (tmp_path / "r.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    expected = {
        str(clip): float(torch.mv(texts, video)[1])
        for clip in shape_clips
        for video, texts in [by_hand(loaded["tc_clip"], clip)]
    }
    assert [row["video"] for row in rows] == sorted(expected, key=lambda path: -expected[path])
    assert [float(row["cosine"]) for row in rows] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-5)
    assert embed_command.main([videos[-1], *options, "--output", str(tmp_path / "none.npz")]) == 1
    assert not (tmp_path / "none.npz").exists()


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (embed_command, ["v.mp4", "--output", "f.pt"], "must end in .safetensors or .npz"),
        (embed_command, ["v.mp4", "--output", "/proc/f.npz"], "cannot be written"),
        (search_command, [" ", "v.mp4"], "the text is empty"),
        (search_command, ["a dog", "f.npz", "v.mp4"], "searched alone"),
        (search_command, ["a dog", "missing.npz"], "missing.npz: cannot be read"),
    ],
)
def test_mistakes_are_one_line(command, arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        command.main([*arguments, "--checkpoint", "no.pth"])
    shown = capsys.readouterr().err
    assert left.value.code == 2 and shown.startswith("error: ") and shown.count("\n") == 1 and message in shown


@pytest.mark.parametrize("matching", ["frame_mean", "frame_max"])
def test_other_comparisons_rank_as_the_model_scores(matching: str, loaded, shape_clips) -> None:
    sizes = {"image_size": 48, "patch_size": 12, "vision_width": 64, "vision_depth": 2, "text_width": 64}
    options = {"templates": ["a photo of {}.", "{}"], "text_pooling": "max", "matching": matching, "num_frames": 6}
    torch.manual_seed(1)
    model = tc_clip.create_model(
        "vanilla_clip", class_names=[TEXTS[1]], **sizes, text_depth=2, embed_dim=64, **options
    ).eval()
    _, cosines = rank(model, embed(model, shape_clips, **FP32), TEXTS[1])
    _, transform = loaded["vifi_clip"]
    with torch.no_grad():
        logits = torch.cat([model(transform(clip)) for clip in shape_clips])[:, 0]
        assert cosines.tolist() == pytest.approx((logits / model.logit_scale.exp()).tolist(), abs=1e-5)


def test_frames_of_several_views(loaded, tiny_checkpoints, shape_clips, tmp_path: Path) -> None:
    model, _ = loaded["vifi_clip"]
    reader = FileReader(transform_of(model, 3), model.num_frames, 2, "auto", 2, 60.0, False)
    views = torch.cat([batch.videos for batch, _ in reader.read(list(map(str, shape_clips)), 0)])  # (n, 6, T, 3, S, S)
    with torch.no_grad():
        pixels = normalize(views.flatten(0, 1), torch.float32, *model.pixels)
        expected = model.encode_video(pixels).class_tokens.unflatten(0, (-1, 6))  # (n, 6, T, E)
    file = tmp_path / "f.safetensors"
    options = ["--checkpoint", str(tiny_checkpoints["vifi_clip"]), "--device", "cpu", "--precision", "fp32"]
    options += ["--workers", "0", "--frames", "--views", "2", "--crops", "3", "--output", str(file)]
    assert embed_command.main([*map(str, shape_clips), *options]) == 0
    features = load_features(file)
    assert features.frames is not None
    torch.testing.assert_close(features.frames, expected, rtol=0, atol=1e-5)
    mean = F.normalize(F.normalize(expected.mean(2), dim=-1).mean(1), dim=-1)
    torch.testing.assert_close(features.video, mean, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="those of one view"):
        embed(loaded["tc_clip"][0], shape_clips[:1], num_clips=2, **FP32)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_changed_value_is_noticed(loaded, suffix: str, shape_clips, tmp_path: Path) -> None:
    features = embed(loaded["vifi_clip"][0], shape_clips[:1], frames=True, **FP32)
    path = tmp_path / f"f.{suffix}"
    save_features(path, features)
    content = path.read_bytes()
    value = features.video.numpy().tobytes()[:8]
    assert content.count(value) == 1
    path.write_bytes(content.replace(value, bytes(8)))
    with pytest.raises(ConfigError, match="is damaged|cannot be read"):
        load_features(path)
