"""The model that CONFIG.md adds as an example: its one file is found and works."""

import re
from pathlib import Path

import pytest
import torch

import tc_clip
from tc_clip import compositions
from tests.tc_clip.comparison import NAMES, PROMPTS, TINY, build, random_video


@pytest.fixture
def past_clip(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the file of the document into the package's search path."""
    text = (repository / "CONFIG.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n# tc_clip/compositions/past_clip\.py\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "past_clip.py").write_text(block, encoding="utf-8")
    monkeypatch.setattr(compositions, "__path__", [*compositions.__path__, str(tmp_path)])
    compositions.compositions.cache_clear()
    yield
    compositions.compositions.cache_clear()


def test_the_model_of_the_document(past_clip: None) -> None:
    assert "past_clip" in tc_clip.model_names()
    model, video = build("past_clip"), random_video(4)
    frames = model.encode_video(video).class_tokens
    frame_wise = tc_clip.create_model("vifi_clip", class_names=NAMES, **TINY).double()
    frame_wise.load_state_dict(model.state_dict())
    alone = frame_wise.encode_video(video).class_tokens
    torch.testing.assert_close(frames[:, 0], alone[:, 0], rtol=1e-10, atol=1e-10)  # no frame is before the first
    assert (frames[:, 1:] - alone[:, 1:]).abs().amax(dim=(0, 2)).min() > 1e-6
    changed = video.clone()
    changed[:, 3] = 0  # the future
    torch.testing.assert_close(model.encode_video(changed).class_tokens[:, :3], frames[:, :3], rtol=1e-10, atol=1e-10)
    with_prompts = build("past_clip", video_prompts=True, local_global_bias=True, **PROMPTS)
    with_prompts(video).sum().backward()
    assert with_prompts.prompts.vectors.grad.abs().sum() > 0
    assert tc_clip.load_weights(build("past_clip", seed=3), {"model": model.state_dict()}).layout == "ours"


def test_without_its_file_there_is_no_such_model() -> None:
    assert "past_clip" not in tc_clip.model_names()
