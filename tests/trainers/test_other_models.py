"""A model that is not a CLIP: it fulfils `tc_clip.VideoModel`, so it trains, is tested, ensembled and predicts."""

import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tc_clip
from trainers import build
from trainers.config.settings import Settings
from trainers.inference.predict import predict


class LetterModel(nn.Module):
    """Compares the colours of a video's frames with the letters of class names."""

    name = "letters"
    trainable = True
    input_size = 32
    num_frames = 4
    pixels = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))

    def __init__(self) -> None:
        super().__init__()
        self.video = nn.Linear(3 * self.num_frames, 8)
        self.letters = nn.Linear(len(string.ascii_lowercase), 8)
        self.class_names: tuple[str, ...] = ()
        self.checkpointing = False

    def set_class_names(self, names: Sequence[str], split_camel_case: bool | None = None) -> None:
        self.class_names = tuple(names)

    def forward(self, video: Tensor) -> Tensor:
        counts = torch.tensor([[name.count(letter) for letter in string.ascii_lowercase] for name in self.class_names])
        classes = self.letters(counts.to(video))
        return self.video(video.mean(dim=(3, 4)).flatten(1)) @ classes.T

    def info(self) -> dict:
        return {"name": self.name, "clip_weights": None, "token_embedding": None}

    def parameter_groups(self) -> dict[str, list[str]]:
        return {"text": ["letters.weight", "letters.bias"]}

    def new_parameter_names(self) -> list[str]:
        return ["letters.bias"]

    def set_checkpointing(self, enabled: bool) -> None:
        self.checkpointing = enabled


def build_letters(settings: Settings, videos: object) -> tc_clip.VideoModel:
    """Stand in for `build.build_model`."""
    torch.manual_seed(settings.seed)
    model = LetterModel()
    model.set_class_names(videos.class_names)
    return model


def test_a_whole_run(
    run_here: Callable[..., None], tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "build_model", build_letters)
    options = {"protocol": "zero_shot", "trainer__text_lr_factor": 0.5, "trainer__clip_weights": "letters"}
    run_here(output=tmp_path / "run", epochs=2, wise_ft=0.5, **options)
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert {(row["part"], row["wise_ft"]) for row in rows} == {("val", None), ("test", None), ("test", 0.5)}
    run_here(output=tmp_path / "eval", eval="test", resume=tmp_path / "run" / "best.pth", **options)
    again = json.loads((tmp_path / "eval" / "results_eval_test.json").read_text())["results"][0]
    assert again["top1"] in [row["top1"] for row in rows if row["part"] == "test" and row["wise_ft"] is None]
    checkpoint = tc_clip.read_checkpoint(tmp_path / "run" / "best.pth")
    model = LetterModel().eval()
    assert tc_clip.load_weights(model, checkpoint).layout == "ours"
    assert torch.equal(model.letters.weight, checkpoint.content["model"]["letters.weight"])
    with pytest.raises(tc_clip.WeightsError, match="1 missing: video.weight"):
        tc_clip.load_weights(model, {key: value for key, value in model.state_dict().items() if key != "video.weight"})
    model.set_class_names(["waving", "jumping"])
    (found,) = predict(model, [tiny_root / "shapes" / "videos" / "00.mp4"], top=2)
    assert set(found.classes) == {"waving", "jumping"} and sum(found.scores) == pytest.approx(1)
