"""The tokenizer against CLIP's own token ids, and its limits."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tc_clip.tokenizer import END_TOKEN, START_TOKEN, count_tokens, encode, tokenize

CASES = json.loads((Path(__file__).parents[1] / "golden" / "tokens.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_golden_tokens(name: str) -> None:
    case = CASES[name]
    expected = case["tokens"] + [0] * (case["context_length"] - len(case["tokens"]))
    tokens = tokenize([case["prompt"]], case["context_length"])
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [expected]
    assert count_tokens(case["prompt"]) == len(case["tokens"])


@pytest.mark.parametrize(
    ("file", "names_key", "tokens_key", "template"),
    [
        ("tc_clip_forward.npz", "class_names", "tokens", "a photo of a {}."),
        ("tc_clip_train_step.npz", "class_names", "tokens", "a photo of a {}."),
        ("tc_clip_variants.npz", "class_names", "num_prompt_vectors_8_tokens", "a photo of a X X X X {}."),
        ("vifi_clip_forward.npz", None, "tokens", "a photo of a {}."),
        ("vanilla_clip_forward.npz", None, "tokens", "{}"),
    ],
)
def test_golden_arrays(golden_dir: Path, file: str, names_key: str | None, tokens_key: str, template: str) -> None:
    arrays = np.load(golden_dir / file)
    # The two comparison models were run on the same twelve names.
    names = arrays[names_key] if names_key else np.load(golden_dir / "tc_clip_forward.npz")["class_names"]
    spaced = ["".join(f" {c}" if c.isupper() else c for c in name.replace("_", " ")).strip() for name in names.tolist()]
    tokens = tokenize([template.format(name) for name in spaced], arrays[tokens_key].shape[1])
    assert np.array_equal(tokens.numpy(), arrays[tokens_key])


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("  a \t photo\n of\u00a0a\u3000dog ", "a photo of a dog"),
        ("A PHOTO of A Dog", "a photo of a dog"),
        ("salt &amp; pepper", "salt & pepper"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("cafÃ©", "café"),
        ("“quoted” ‘text’", "\"quoted\" 'text'"),
        ("ﬁshing", "fishing"),
    ],
)
def test_text_is_cleaned(text: str, same_as: str) -> None:
    assert encode(text) == encode(same_as)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # Values of OpenAI's tokenizer.
        ("", []),
        ("   ", []),
        ("a photo of a dog", [320, 1125, 539, 320, 1929]),
        ("2024", [273, 271, 273, 275]),  # digits stand alone
        ("don't", [847, 713]),
        ("<|endoftext|>", [END_TOKEN]),
        ("<|startoftext|>", [START_TOKEN]),
    ],
)
def test_known_ids(text: str, ids: list[int]) -> None:
    assert encode(text) == ids


def test_every_character_has_tokens() -> None:
    text = "日本語 😀 Привет ı ß ก็ \U0001f1f0\U0001f1f7"
    ids = encode(text)
    assert ids and all(0 <= index < START_TOKEN for index in ids)


def test_one_text_may_be_a_string() -> None:
    assert torch.equal(tokenize("a dog"), tokenize(["a dog"]))
    assert tokenize([]).shape == (0, 77)


def test_text_that_fits_exactly_and_one_token_more() -> None:
    text = "dog " * 28
    assert tokenize([text], 30)[0, -1] == END_TOKEN
    with pytest.raises(ValueError, match=r"text 'dog .* has 31 tokens .* context_length=30"):
        tokenize(["cat", text + "dog"], 30)


def test_import_reads_no_vocabulary() -> None:
    code = "import tc_clip.tokenizer as t; print(t._load_vocabulary.cache_info().currsize)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "0\n"
