"""Runs that start from weights of other families: train, resume, test, predict, export, visualize."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tc_clip
from tests.tc_clip.families import make, write
from trainers.inference.export.folder import export_model
from trainers.inference.predict import load_model, predict
from trainers.inference.visualize.trace import look
from video_datasets.transforms import normalize

CLASSES = ["red dog", "riding a bike"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["pe", "eva02", "siglip2"])
def test_a_run_from_the_first_update_to_the_report(family, run_here, tiny_root: Path, tmp_path: Path) -> None:
    weights = write(make(family), family, tmp_path)
    options = {"trainer": "tc_clip", "protocol": "zero_shot", "trainer__clip_weights": str(weights), "lr": 1e-4}
    options |= {"context_length": 32, "data__max_bad_share": 0.5}
    if family.startswith("siglip"):  # words that its tiny vocabulary has
        options["trainer__options__prompt_init"] = '"a photo of a"'
    run = tmp_path / "run"
    run_here(output=run, epochs=1, final_test__enabled=False, **options)
    run_here(output=run, epochs=2, wise_ft=0.5, **options)  # resumes
    rows = json.loads((run / "results.json").read_text())["results"]
    assert {(row["part"], row["wise_ft"]) for row in rows} == {("val", None), ("test", None), ("test", 0.5)}
    log = (run / "log.txt").read_text()
    assert "mean 127.5 127.5 127.5, deviation 127.5 127.5 127.5" in log and "resumes at epoch 2" in log
    assert f"tokenizer {'tiny' if family.startswith('siglip') else 'clip'}; trained on pictures" in log

    model = load_model(run / "best.pth", CLASSES, clip_weights=str(weights), device="cpu")
    assert model.pixels == ((127.5,) * 3, (127.5,) * 3)
    (found,) = predict(model, [tiny_root / "shapes" / "videos" / "00.mp4"], top=2, precision="fp32")
    assert set(found.classes) == set(CLASSES)
    insight = look(model, tiny_root / "shapes" / "videos" / "00.mp4", precision="fp32")
    assert [block.attention.shape for block in insight.blocks] == [(4, 16)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["pe", "siglip"])
def test_exported_programs_are_the_model(family, tmp_path: Path) -> None:
    weights = write(make(family), family, tmp_path)
    options = {"num_context_tokens": 6, "merge_rate": 4, "prompt_layers": (2,), "num_frames": 2, "context_length": 32}
    model = tc_clip.create_model("tc_clip", class_names=CLASSES, clip_weights=weights, **options).double().eval()
    folder = tmp_path / "export"
    folder.mkdir()
    export_model(model, folder, programs=("classifier", "video", "text"), formats=("pt2", "safetensors"))
    video = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 2, 3, 32, 32), dtype=np.uint8))
    with torch.no_grad():
        (logits,) = torch.export.load(folder / "classifier.pt2").module()(video)
        torch.testing.assert_close(logits, model(normalize(video, torch.float64, *model.pixels)), rtol=0, atol=1e-8)
    facts = json.loads((folder / "export.json").read_text())
    assert (folder / facts["vocabulary"]).is_file()
    from trainers.inference.exported_predict import scorer

    score = scorer(folder, "pt2", facts, CLASSES)
    np.testing.assert_allclose(score(video.numpy()), logits.numpy(), atol=1e-8)
