"""Fetching known CLIP weights, against a server of the test on the loopback interface."""

import hashlib
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from tc_clip.weights import downloads
from tc_clip.weights.downloads import KNOWN_CLIP_WEIGHTS, ClipArchive, fetch_clip_weights, open_https
from tc_clip.weights.files import WeightsError

CONTENT = bytes(range(256)) * 12000  # several chunks
BROKEN_OFF_AT = len(CONTENT) // 3


@pytest.fixture
def server(loopback):
    loopback.plain |= dict.fromkeys(("/whole", "/without_length", "/broken_off"), CONTENT)
    loopback.unsized.add("/without_length")
    loopback.cut["broken_off"] = BROKEN_OFF_AT
    return loopback


def open_without_proxy(url: str):
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5)


@pytest.fixture
def fetch(server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return a function that fetches "tiny" from a path of the server into tmp_path/cache."""

    def fetch(path: str, sha256: str = hashlib.sha256(CONTENT).hexdigest()) -> Path:
        url = server.url + path
        monkeypatch.setitem(KNOWN_CLIP_WEIGHTS, "tiny", ClipArchive(url, sha256, "tiny.pt"))
        return fetch_clip_weights("tiny", tmp_path / "cache", open_url=open_without_proxy)

    return fetch


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("path", ["/whole", "/without_length"])
def test_downloads_once(fetch, server, tmp_path: Path, path: str) -> None:
    file = fetch(path)
    assert file == tmp_path / "cache" / "tiny.pt" and file.read_bytes() == CONTENT
    assert fetch(path) == file
    assert server.requests == [("GET", path)]
    assert left_in(file.parent) == ["tiny.pt"]


@pytest.mark.parametrize("is_whole", [True, False])
def test_the_cache_of_openais_package_is_used(fetch, server, tmp_path: Path, monkeypatch, is_whole: bool) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    theirs = tmp_path / "home" / ".cache" / "clip" / "tiny.pt"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(CONTENT if is_whole else CONTENT[:100])
    file = fetch("/whole")
    assert file == (theirs if is_whole else tmp_path / "cache" / "tiny.pt") and file.read_bytes() == CONTENT
    assert server.requests == ([] if is_whole else [("GET", "/whole")])


@pytest.mark.parametrize(
    ("path", "sha256", "reason"),
    [
        ("/whole", "0" * 64, f"SHA-256 {hashlib.sha256(CONTENT).hexdigest()}, not {'0' * 64}"),
        ("/broken_off", "0" * 64, f"ended after {BROKEN_OFF_AT} of {len(CONTENT)} bytes"),
        ("/absent", "0" * 64, "HTTP Error 404"),
    ],
)
def test_failure_leaves_nothing_and_says_what_to_do(fetch, tmp_path: Path, path: str, sha256: str, reason: str) -> None:
    with pytest.raises(WeightsError) as caught:
        fetch(path, sha256)
    message = str(caught.value)
    assert reason in message and "\n" not in message
    assert f"{path} another way and copy it to {tmp_path / 'cache' / 'tiny.pt'}" in message
    assert left_in(tmp_path / "cache") == []


def test_interrupt_leaves_nothing(fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class InterruptedBar(downloads.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "tqdm", InterruptedBar)
    with pytest.raises(KeyboardInterrupt):
        fetch("/whole")
    assert left_in(tmp_path / "cache") == []


def test_wrong_file_in_the_cache_is_kept_and_named(fetch, server, tmp_path: Path) -> None:
    file = tmp_path / "cache" / "tiny.pt"
    file.parent.mkdir()
    file.write_bytes(b"something else")
    with pytest.raises(WeightsError, match=rf"{file}: SHA-256 is .*delete the file"):
        fetch("/whole")
    assert file.read_bytes() == b"something else" and server.requests == []


def test_file_put_there_by_hand(fetch, server, tmp_path: Path) -> None:
    file = tmp_path / "cache" / "tiny.pt"
    file.parent.mkdir()
    file.write_bytes(CONTENT)
    assert fetch("/whole") == file and server.requests == []


def test_unknown_host_fails_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = ClipArchive("https://weights.invalid/ViT-B-16.pt", "0" * 64, "ViT-B-16.pt")
    monkeypatch.setitem(KNOWN_CLIP_WEIGHTS, "ViT-B/16", archive)
    monkeypatch.setenv("TC_CLIP_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(WeightsError, match=rf"ViT-B/16 .*download {archive.url} .* copy it to {tmp_path}/ViT-B-16.pt"):
        fetch_clip_weights("ViT-B/16")
    assert time.monotonic() - start < 2 * downloads.CONNECT_TIMEOUT_S + 2


def test_hanging_lookup_ends_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "CONNECT_TIMEOUT_S", 0.1)
    release = threading.Event()
    with pytest.raises(WeightsError, match="no response within 0.2 s"):
        fetch_clip_weights("ViT-B/16", tmp_path, open_url=lambda url: release.wait(30))
    release.set()


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match=r"file/cache: cannot be created .*TC_CLIP_CACHE"):
        fetch_clip_weights("ViT-B/16", tmp_path / "file" / "cache", open_url=open_without_proxy)


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'ViT-B-16'; known: ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336px"):
        fetch_clip_weights("ViT-B-16", tmp_path)


def test_known_archives_are_https_and_named_by_their_sum() -> None:
    for archive in KNOWN_CLIP_WEIGHTS.values():
        # open_clip publishes the first four bytes of the sum, in the file's name.
        by_openai = "openaipublic" in archive.url
        num_bytes = 32 if by_openai else 4
        assert archive.url.startswith("https://") and len(bytes.fromhex(archive.sha256)) == num_bytes
        assert archive.url.endswith(f"/{archive.sha256}/{archive.filename}" if by_openai else f"/{archive.filename}")
        assert archive.accepts(archive.sha256 + "0" * (64 - 2 * num_bytes)) and not archive.accepts("0" * 64)


def test_plain_http_is_refused(server) -> None:
    for url in (f"http://127.0.0.1:{server.server_address[1]}/whole", "file:///etc/hostname"):
        with pytest.raises(WeightsError, match="only https"):
            open_https(url)
    assert server.requests == []
    redirects = downloads._HttpsOnlyRedirects()
    request = urllib.request.Request("https://example.invalid/a")
    with pytest.raises(WeightsError, match="only https"):
        redirects.redirect_request(request, None, 302, "Found", {}, "http://example.invalid/b")
    assert redirects.redirect_request(request, None, 302, "Found", {}, "https://example.invalid/b") is not None


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bar_on_a_terminal_only(fetch, monkeypatch, capsys, terminal: bool) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    fetch("/whole")
    shown = capsys.readouterr()
    assert shown.out == "" and ("tiny.pt" in shown.err) == terminal
