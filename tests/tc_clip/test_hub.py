"""Weights on the hub, by name: a server of the test on the loopback interface speaks the hub's protocol."""

import hashlib
import json
import os
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

import tc_clip
from tc_clip.weights import __main__ as command
from tc_clip.weights import clip, hub
from tc_clip.weights.facts import CLIP_PIXELS
from tc_clip.weights.files import WeightsError
from tc_clip.weights.hub import KNOWN_HUB_WEIGHTS, HubWeights, fetch_hub_weights
from tc_clip.weights.layouts import to_clip
from tests.loopback import COMMIT, Repo

OTHER = "2" * 40
NAME = "tiny"
TINY = {"image_size": 16, "patch_size": 8, "vision_width": 64, "vision_depth": 1, "text_width": 64, "text_depth": 1}
PIXELS = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}


def files() -> dict[str, bytes]:
    """Return the files of a tiny repository in open_clip's layout."""
    model = tc_clip.create_model("vifi_clip", class_names=["a"], embed_dim=64, **TINY)
    state = to_clip(model.state_dict() | {"text.token_embedding": model.text.token_embedding})
    towers = {"vision_cfg": {"head_width": 64}, "text_cfg": {"width": 64, "heads": 1}}
    config = {"model_cfg": towers, "preprocess_cfg": PIXELS | {"resize_mode": "shortest", "interpolation": "bicubic"}}
    return {
        "open_clip_config.json": json.dumps(config).encode(),
        "open_clip_model.safetensors": save({name: value.contiguous() for name, value in state.items()}),
    }


@pytest.fixture(scope="module")
def content() -> dict[str, bytes]:
    return files()


@pytest.fixture
def server(content, loopback):
    loopback.repos["owner/tiny"] = Repo({COMMIT: dict(content)})
    return loopback


@pytest.fixture
def tiny(server):
    """The files of the repository."""
    return server.repos["owner/tiny"].files


@pytest.fixture
def fetch(server, monkeypatch, tmp_path):
    """Return a function that fetches "tiny" from the server into tmp_path."""

    def fetch(**changes) -> hub.HubFiles:
        known = replace(HubWeights("owner/tiny", 1.0, 16, "MIT", COMMIT), **changes)
        monkeypatch.setitem(KNOWN_HUB_WEIGHTS, NAME, known)
        return fetch_hub_weights(NAME, tmp_path, server.url)

    return fetch


def test_downloads_once_and_then_needs_no_network(fetch, server, content):
    found = fetch()
    assert found.weights.read_bytes() == content["open_clip_model.safetensors"]
    assert found.revision == COMMIT and found.weights.with_name("open_clip_config.json").is_file()
    asked = len(server.requests)
    assert fetch() == found and len(server.requests) == asked


def test_a_known_name_gives_a_model_with_its_facts(fetch, monkeypatch, tiny, tmp_path):
    fetch(sha256=hashlib.sha256(tiny["open_clip_model.safetensors"]).hexdigest())
    monkeypatch.setattr(clip, "fetch_hub_weights", lambda name: fetch_hub_weights(name, tmp_path))
    model = tc_clip.create_model("vanilla_clip", class_names=["a", "b"], clip_weights=NAME, pixels="weights")
    facts = model.info()["weights"]
    assert model.pixels == CLIP_PIXELS and (facts["licence"], facts["revision"]) == ("MIT", COMMIT)
    again = tc_clip.load_model({"model": model.state_dict(), "model_info": model.info()}, ["a", "b"])
    video = torch.randn(1, 2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.eval()(video), model.eval()(video))


def test_weights_as_a_pickle_if_there_is_nothing_safer(fetch, tiny):
    tiny["open_clip_pytorch_model.bin"] = tiny.pop("open_clip_model.safetensors")
    assert fetch().weights.name == "open_clip_pytorch_model.bin"


def test_the_tokenizer_of_another_repository(fetch, server, tmp_path):
    server.repos["owner/tokens"] = Repo({COMMIT: {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}"}})
    found = fetch(tokenizer=("owner/tokens", COMMIT))
    assert found.tokenizer.read_bytes() == b"{}" and "owner--tokens" in str(found.tokenizer)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("GatedRepo", "is gated: accept its terms on its page, and log in with `hf auth login` or set HF_TOKEN"),
        ("RepoNotFound", "there is no repository owner/tiny, or it needs a token"),
        ("RevisionNotFound", f"owner/tiny has no commit {COMMIT}"),
        ("EntryNotFound", "owner/tiny has no open_clip_config.json"),
    ],
)
def test_what_the_hub_refuses(fetch, server, code, message):
    server.refuses = code
    with pytest.raises(WeightsError) as caught:
        fetch()
    assert message in str(caught.value) and NAME in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_download_that_is_cut_off(fetch, server, tmp_path):
    server.cut["open_clip_model.safetensors"] = 1000
    with pytest.raises(WeightsError, match="cannot download tiny .*open_clip_model.safetensors of owner/tiny"):
        fetch()
    assert hub.cached_hub_weights(NAME, tmp_path) is None


def test_content_that_differs_from_the_pinned_one(fetch, server, tmp_path):
    with pytest.raises(WeightsError, match=f"SHA-256 is .*, not {'0' * 64} of tiny"):
        fetch(sha256="0" * 64)
    found = fetch()
    blob = found.weights.resolve()
    os.truncate(blob, 1000)
    with pytest.raises(WeightsError, match=f"not {blob.name} of tiny: the download was cut off"):
        fetch()
    with pytest.raises(WeightsError, match=f"has no commit {OTHER}"):
        fetch(revision=OTHER)


def test_without_a_network(server, monkeypatch, tmp_path):
    monkeypatch.setitem(KNOWN_HUB_WEIGHTS, NAME, HubWeights("owner/tiny", 1.0, 16, "MIT"))
    start = time.monotonic()
    with pytest.raises(WeightsError, match="cannot download tiny .*give the path of the weights") as caught:
        fetch_hub_weights(NAME, tmp_path, "http://127.0.0.1:9")
    assert time.monotonic() - start < 8
    assert "\n" not in str(caught.value)


def test_the_command_lists_all(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TC_CLIP_CACHE", str(tmp_path))
    (tmp_path / "ViT-B-32.pt").touch()
    (tmp_path / "tc-clip-zero-shot-k400.pth").touch()
    assert command.main(["list"]) == 0
    weights, models = capsys.readouterr().out.split("\n\n")
    lines = weights.splitlines()
    assert len(lines) == 1 + len(command.KNOWN_CLIP_WEIGHTS) + len(KNOWN_HUB_WEIGHTS)
    first = next(line for line in lines if line.startswith("ViT-B/32 "))
    assert first.split() == ["ViT-B/32", "151.3", "224", "MIT", "downloaded"]
    perception = next(line for line in lines if line.startswith("PE-Core-B/16"))
    assert perception.split()[3:] == ["Apache-2.0", "not", "downloaded"]
    found, missing = (line.split(maxsplit=4) for line in models.splitlines()[1:])
    present = f"file present: {tmp_path / 'tc-clip-zero-shot-k400.pth'}"
    assert found == ["tc-clip-zero-shot-k400", "tc_clip", "ViT-B/16", "k400", present]
    assert missing[0] == "tc-clip-fully-supervised-k400" and missing[4] == f"no file at {tmp_path / missing[0]}.pth"
    assert command.main(["fetch", found[0]]) == 0
    assert capsys.readouterr().out == f"{tmp_path / found[0]}.pth\n"
    assert command.main(["fetch", missing[0]]) == 1
    assert "copy it to" in capsys.readouterr().err


def test_the_command_fetches(capsys, monkeypatch, tmp_path):
    def refuse(name):
        raise WeightsError(f"{name}: no")

    monkeypatch.setattr(command, "fetch_hub_weights", refuse)
    assert command.main(["fetch", "PE-Core-B/16"]) == 1
    assert capsys.readouterr().err == "PE-Core-B/16: no\n"


def test_known_repositories_are_pinned_by_whole_commits():
    for known in KNOWN_HUB_WEIGHTS.values():
        for revision in (known.revision, known.tokenizer and known.tokenizer[1]):
            assert revision is None or len(bytes.fromhex(revision)) == 20
        assert known.sha256 is None or len(bytes.fromhex(known.sha256)) == 32
