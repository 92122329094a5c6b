"""The notebook runs from top to bottom, and its file is small."""

from pathlib import Path

import pytest

MAX_BYTES = 700_000


def cells_of(repository: Path):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (requirements-dev.txt)")
    return nbformat.read(repository / "notebooks" / "tc_clip_demo.ipynb", as_version=4)


def test_the_file_is_small_and_names_no_machine(repository: Path) -> None:
    notebook = cells_of(repository)
    path = repository / "notebooks" / "tc_clip_demo.ipynb"
    assert path.stat().st_size < MAX_BYTES
    text = path.read_text(encoding="utf-8")
    assert "/home/" not in text and "/root/" not in text and "/work/" not in text, "no path of one machine"
    assert not any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.slow
def test_it_runs(repository: Path, tiny_checkpoints, shape_clips, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (requirements-dev.txt)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (requirements-dev.txt)")
    monkeypatch.setenv("TC_CLIP_CHECKPOINT", str(tiny_checkpoints["tc_clip"]))
    monkeypatch.setenv("TC_CLIP_OTHER", str(tiny_checkpoints["vifi_clip"]))
    monkeypatch.setenv("TC_CLIP_VIDEO", str(shape_clips[0]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = cells_of(repository)
    client = nbclient.NotebookClient(
        notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": str(repository / "notebooks")}}
    )
    client.execute()
    text, pictures = "", 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text += output.get("text", "")
            pictures += "image/png" in output.get("data", {})
    assert pictures == 3
    assert "no such file.mp4 No such file" in text and "something red" in text
    assert "tc_clip: " in text and "vifi_clip: " in text and "a page of" in text
