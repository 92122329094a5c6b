"""Models to the hub and back, by `hf://` addresses, against a server of the test on the loopback interface."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

import tc_clip
from tc_clip.weights.convert import write_safetensors
from tc_clip.weights.files import WeightsError
from tc_clip.weights.sources import HubAddress, parse_address, published_models
from tests.conftest import TINY_CONTEXT, TINY_SIZES
from tests.loopback import COMMIT, Repo

NAMES = ["a dog", "a cat", "surfing"]
REPO, ADDRESS = "me/my-model", "hf://me/my-model"


def model_of(seed: int = 0) -> tc_clip.VideoClip:
    torch.manual_seed(seed)
    return tc_clip.create_model("tc_clip", class_names=NAMES, **TINY_SIZES, **TINY_CONTEXT).eval()


def logits(model: tc_clip.VideoClip) -> torch.Tensor:
    video = torch.randn(1, 6, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(video)


def error_of(function, *arguments, **options) -> str:
    with pytest.raises(WeightsError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def packed(tmp_path: Path, **entries) -> bytes:
    model = model_of()
    content = {"model": model.state_dict(), "model_info": model.info(), "format_version": 1, **entries}
    write_safetensors(tmp_path / "packed.safetensors", content)
    return (tmp_path / "packed.safetensors").read_bytes()


def test_a_model_comes_back_equal_with_its_class_names(hub):
    model = model_of()
    found = model.push_to_hub(REPO, licence="MIT", recipe="Trained on shapes.", metrics=[{"top1": 50.0}])
    commit = hub.repos[REPO].branches["main"]
    assert found == f"{ADDRESS}@{commit}"
    again = tc_clip.load_model(ADDRESS)
    assert list(again.class_names) == NAMES and torch.equal(logits(again), logits(model))
    assert list(tc_clip.load_model(found, ["x", "y"]).class_names) == ["x", "y"]
    files = hub.repos[REPO].commits[commit]
    facts = json.loads(files["config.json"])
    assert (facts["class_names"], facts["licence"], facts["results"]) == (NAMES, "MIT", [{"top1": 50.0}])
    card = files["README.md"].decode()
    for text in ("license: mit\n", "Trained on shapes.", "a dog, a cat, surfing", 'load_model("hf://me/my-model")'):
        assert text in card


def test_a_checkpoint_to_a_branch(hub, tmp_path):
    model = model_of()
    torch.save(
        {"format_version": 2, "model": model.state_dict(), "model_info": model.info(), "run": {"class_names": NAMES}},
        tmp_path / "best.pth",
    )
    tc_clip.push_to_hub(tmp_path / "best.pth", REPO, private=True, revision="half")
    assert hub.repos[REPO].private
    assert torch.equal(logits(tc_clip.load_model(f"{ADDRESS}@half")), logits(model))
    assert "me/my-model has no model.safetensors" in error_of(tc_clip.load_model, ADDRESS)
    assert "license:" not in hub.repos[REPO].commits[hub.repos[REPO].branches["half"]]["README.md"].decode()


def test_the_newest_commit_unless_one_is_named(hub, monkeypatch, caplog):
    first, second = model_of(0), model_of(1)
    address = first.push_to_hub(REPO)
    assert torch.equal(logits(tc_clip.load_model(ADDRESS)), logits(first))
    second.push_to_hub(REPO)
    assert torch.equal(logits(tc_clip.load_model(ADDRESS)), logits(second))
    asked = len(hub.requests)
    assert torch.equal(logits(tc_clip.load_model(address)), logits(first)) and len(hub.requests) == asked
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    assert torch.equal(logits(tc_clip.load_model(ADDRESS)), logits(second))
    assert "the version in the cache is used" in caplog.text


def test_offline(hub, monkeypatch):
    model_of().push_to_hub(REPO)
    tc_clip.load_model(ADDRESS)
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert list(tc_clip.load_model(ADDRESS).class_names) == NAMES
    assert "is not in the cache, and HF_HUB_OFFLINE" in error_of(tc_clip.load_model, "hf://me/other")
    assert "HF_HUB_OFFLINE is set" in error_of(model_of().push_to_hub, REPO)
    assert len(hub.requests) == asked


def test_what_the_hub_refuses(hub, monkeypatch, tmp_path):
    hub.repos["owner/gated"] = Repo({COMMIT: {"model.safetensors": packed(tmp_path)}}, token="hf_good", gated=True)
    assert "there is no repository me/none, or it needs a token" in error_of(tc_clip.load_model, "hf://me/none")
    assert "owner/gated is gated: accept its terms" in error_of(tc_clip.load_model, "hf://owner/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    tc_clip.load_model("hf://owner/gated", NAMES)
    assert "owner/gated has no revision v2" in error_of(tc_clip.load_model, "hf://owner/gated@v2", NAMES)
    message = error_of(tc_clip.load_model, "hf://owner/gated/other.safetensors", NAMES)
    assert "has no other.safetensors" in message
    hub.write_token = "hf_writes"
    assert "the hub refuses (401): log in" in error_of(model_of().push_to_hub, REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_writes")
    model_of().push_to_hub(REPO)
    assert "exists and is public" in error_of(model_of().push_to_hub, REPO, private=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://me/x", HubAddress("me/x")),
        ("hf://me/x@v1.0", HubAddress("me/x", "v1.0")),
        ("hf://me/x@refs/pr/3/a/b.safetensors", HubAddress("me/x", "refs/pr/3", "a/b.safetensors")),
        ("hf://me/x/b.safetensors", HubAddress("me/x", None, "b.safetensors")),
    ],
)
def test_addresses(text, expected):
    assert parse_address(text) == expected and str(expected) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf://me", "it has the form hf://owner/name"),
        ("hf://../x", "no name of a repository"),
        ("hf://me/x/../../y.safetensors", "inside the repository"),
        ("hf://me/x//etc/y.safetensors", "inside the repository"),
        ("hf://me/x/best.pth", "only .safetensors files are read from the hub"),
    ],
)
def test_wrong_addresses(text, message):
    assert message in error_of(parse_address, text)


class _Runs:
    def __reduce__(self):
        return (Path.touch, (_Runs.target,))


def test_nothing_in_a_downloaded_file_runs_and_no_path_is_followed(hub, tmp_path):
    _Runs.target = tmp_path / "ran"
    secret = tmp_path / "secret.json"
    secret.write_text('{"a dog": "a secret"}')
    info = model_of().info()
    bad = {
        "pickle": (pickle.dumps({"model": _Runs()}), "cannot be read as weights"),
        "weights": (
            packed(tmp_path, class_names=NAMES, model_info=info | {"clip_weights": str(secret)}),
            "a path inside a checkpoint is not followed",
        ),
        "descriptions": (
            packed(
                tmp_path,
                class_names=NAMES,
                model_info=info | {"options": info["options"] | {"descriptions": str(secret)}},
            ),
            "a path inside a checkpoint is not followed",
        ),
        "plain": (save({"x": torch.zeros(1)}), "does not name its model"),
        "nameless": (packed(tmp_path), "does not contain class names: give class_names"),
    }
    for name, (content, message) in bad.items():
        hub.repos[f"bad/{name}"] = Repo({COMMIT: {"model.safetensors": content}})
        assert message in error_of(tc_clip.load_model, f"hf://bad/{name}")
    assert not _Runs.target.exists()


def test_what_cannot_be_published(hub, tmp_path):
    model = model_of()
    assert "no name of a repository" in error_of(model.push_to_hub, "my-model")
    assert "must be an SPDX identifier" in error_of(model.push_to_hub, REPO, licence="mit\nx: y")
    assert "does not name its model" in error_of(tc_clip.push_to_hub, {"model": {}}, REPO)
    info = model.info()
    state = {"model": model.state_dict(), "model_info": info | {"clip_weights": "/home/me/private/ViT.pt"}}
    tc_clip.push_to_hub(state, REPO)
    assert all(
        b"private" not in content for content in hub.repos[REPO].commits[hub.repos[REPO].branches["main"]].values()
    )
    state["model_info"] = info | {"options": info["options"] | {"descriptions": "texts.json"}}
    assert "publish a model without descriptions" in error_of(tc_clip.push_to_hub, state, REPO)


@pytest.mark.parametrize("name", published_models())
def test_a_published_model_is_given_by_hand(name, tiny_checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("TC_CLIP_CACHE", str(tmp_path))
    message = error_of(tc_clip.read_checkpoint, name)
    assert published_models()[name].page in message and f"copy it to {tmp_path / name}.pth" in message
    (tmp_path / f"{name}.pth").write_bytes(tiny_checkpoints["tc_clip"].read_bytes())
    assert tc_clip.read_checkpoint(name).model_info["name"] == "tc_clip"
