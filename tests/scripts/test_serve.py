"""The service by real requests on the loopback interface."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx", reason="gradio, which brings it, is not installed")
pytest.importorskip("fastapi", reason="gradio, which brings it, is not installed")

CLASSES = ["red square moving sideways", "green square moving diagonally", "a dog"]
TOKEN = "0123456789abcdefXYZ"


@pytest.fixture(scope="module")
def started(repository: Path, tiny_checkpoints, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """Start `tc-clip serve` with small limits; give its address and its folder of temporary files."""
    folder = tmp_path_factory.mktemp("serve")
    command = [
        sys.executable,
        str(repository / "scripts" / "serve.py"),
        "--checkpoint",
        str(tiny_checkpoints["tc_clip"]),
    ]
    command += ["--classes", *CLASSES, "--port", "0", "--device", "cpu", "--precision", "fp32", "--max-mb", "1"]
    command += ["--max-files", "3", "--max-seconds", "30", "--timeout", "20"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + process.stderr.read()
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{found[0]}/health", trust_env=False)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.1)
        yield found[0], folder
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        process.stderr.close()


def ask(address: str, *videos: Path, data: dict | None = None, **headers: str):
    files = [("files", (video.name, video.read_bytes())) for video in videos]
    return httpx.post(f"{address}/predict", files=files, data=data or {}, headers=headers, trust_env=False, timeout=60)


def test_health_and_schema(started: tuple[str, Path]) -> None:
    health = httpx.get(f"{started[0]}/health", trust_env=False).json()
    assert (health["status"], health["model"], health["num_classes"]) == ("ok", "tc_clip", 3)
    schema = httpx.get(f"{started[0]}/openapi.json", trust_env=False).json()
    reply = schema["paths"]["/predict"]["post"]["responses"]
    assert {"200", "401", "403", "413", "422", "503"} <= reply.keys()
    assert schema["components"]["schemas"]["Score"]["properties"].keys() == {"class", "score"}


def test_a_batch_is_predicted_as_by_the_command(
    started: tuple[str, Path], tiny_checkpoints, shape_clips, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from trainers.commands import predict

    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    reply = ask(started[0], shape_clips[0], broken, shape_clips[1], data={"top": "2", "threshold": "0.99"})
    assert reply.status_code == 200, reply.text
    words = [*map(str, [shape_clips[0], broken, shape_clips[1]]), "--checkpoint", str(tiny_checkpoints["tc_clip"])]
    words += ["--classes", *CLASSES, "--top", "2", "--threshold", "0.99", "--precision", "fp32", "--workers", "0"]
    assert predict.main([*words, "--device", "cpu", "--json", "-"]) == 0
    expected = json.loads(capsys.readouterr().out)
    for got, wanted in zip(reply.json(), expected, strict=True):
        assert got.keys() == wanted.keys() and got["video"] == Path(wanted["video"]).name
        assert (got["label"], got["error"] is None) == (wanted["label"], wanted["error"] is None)
        assert [item["class"] for item in got["predictions"]] == [item["class"] for item in wanted["predictions"]]
        scores = [item["score"] for item in wanted["predictions"]]
        assert [item["score"] for item in got["predictions"]] == pytest.approx(scores, abs=1e-5)
    assert list(started[1].glob("tc_clip_serve_*")) == [], "uploads are deleted with the reply"


def test_a_request_names_its_own_classes(started: tuple[str, Path], shape_clips) -> None:
    own = ask(started[0], shape_clips[0], data={"classes": ["a cat", "a horse"]}).json()
    assert {item["class"] for item in own[0]["predictions"]} == {"a cat", "a horse"}
    after = ask(started[0], shape_clips[0]).json()
    assert {item["class"] for item in after[0]["predictions"]} == set(CLASSES), "the next one has the service's"


def test_wrong_requests_get_one_line_of_json(started: tuple[str, Path], shape_clips, tmp_path: Path) -> None:
    address, clip = started[0], shape_clips[0]
    broken, large = tmp_path / "broken.mp4", tmp_path / "large.mp4"
    broken.write_bytes(b"no video")
    large.write_bytes(bytes(3 << 20))
    wrong = [
        (ask(address), 422, "files: "),
        (ask(address, clip, data={"top": "0"}), 422, "top: "),
        (ask(address, clip, data={"threshold": "2"}), 422, "threshold: "),
        (ask(address, clip, data={"classes": "one"}), 422, "at least two"),
        (ask(address, clip, data={"classes": ["a", "word " * 39]}), 422, "does not fit"),
        (ask(address, broken), 422, "broken.mp4: cannot be read: "),
        (ask(address, broken, broken), 422, "none of the 2 videos"),
        (ask(address, *[clip] * 4), 413, "4 files are too many"),
        (ask(address, large), 413, "bytes"),
        (ask(address, clip, origin="http://evil.example"), 403, "other pages"),
        (ask(address, clip, host="evil.example"), 403, "this machine only"),
        (httpx.get(f"{address}/nothing", trust_env=False), 404, "Not Found"),
        (httpx.get(f"{address}/predict", trust_env=False), 405, "Method"),
    ]
    for reply, status, text in wrong:
        assert reply.status_code == status, reply.text
        error = reply.json()["error"]
        assert list(reply.json()) == ["error"] and text in error and "\n" not in error
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
    unsized = (head if number == 0 else bytes(1 << 20) for number in range(6))
    kind = {"content-type": "multipart/form-data; boundary=x"}
    reply = httpx.post(f"{address}/predict", content=unsized, headers=kind, trust_env=False)
    assert reply.status_code == 413 and "bytes" in reply.json()["error"]


def test_limits_of_number_token_and_length(tiny_checkpoints, shape_clips) -> None:
    from fastapi.testclient import TestClient

    from trainers.inference.demo_guard import RequestGuard
    from trainers.inference.predict import load_model
    from trainers.inference.service import OPEN_PATHS, Service, build_service

    model = load_model(tiny_checkpoints["tc_clip"], CLASSES, device="cpu")
    app = build_service(Service(model, "fp32", max_seconds=0.1))
    guard = RequestGuard(app, 1 << 20, token=TOKEN, open_paths=OPEN_PATHS, max_writing=1, as_json=True)
    client = TestClient(guard, base_url="http://service.example")
    clip = [("files", ("a.mp4", shape_clips[0].read_bytes()))]
    assert client.get("/health").status_code == 200
    for headers in ({}, {"Authorization": "Bearer 0123456789abcdef"}, {"Authorization": TOKEN}):
        reply = client.post("/predict", files=clip, headers=headers)
        assert reply.status_code == 401 and "token" in reply.json()["error"]
    assert client.get("/openapi.json").status_code == 401
    reply = client.post("/predict", files=clip, headers={"Authorization": f"Bearer {TOKEN}"})
    assert reply.status_code == 422 and "the limit is 0 s" in reply.json()["error"]
    guard.num_writing = 1
    reply = client.post("/predict", files=clip, headers={"Authorization": f"Bearer {TOKEN}"})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "give a token"),
        (["--token-file", "none.txt"], "none.txt: cannot be read"),
        (["--port", "70000"], "cannot listen there"),
        (["--port", "0"], "no.pth"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    from trainers.commands import serve

    with pytest.raises(SystemExit) as left:
        serve.main(["--checkpoint", "no.pth", "--classes", "a", "b", *arguments])
    shown = capsys.readouterr().err
    assert left.value.code == 2 and shown.startswith("error: ") and shown.count("\n") == 1 and message in shown


def test_short_tokens_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from trainers.commands import serve

    (tmp_path / "token").write_text("short\n")
    with pytest.raises(SystemExit):
        serve.main(["--checkpoint", "no.pth", "--token-file", str(tmp_path / "token")])
    assert "at least 16 letters" in capsys.readouterr().err
