"""Losses and weights of classes, against formulas in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.errors import ConfigError
from trainers.losses import CrossEntropy, balanced_weights, read_class_weights


def test_weights_multiply_the_terms_of_their_classes() -> None:
    rng = np.random.default_rng(0)
    logits, targets, weights = rng.normal(size=(5, 4)), rng.dirichlet(np.ones(4), size=5), rng.random(4) + 0.5
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    found = CrossEntropy(torch.from_numpy(weights))(torch.from_numpy(logits), torch.from_numpy(targets))
    assert float(found) == pytest.approx(-(weights * targets * log_shares).sum(), rel=1e-12)
    plain = CrossEntropy()(torch.from_numpy(logits), torch.from_numpy(targets))
    assert float(plain) == pytest.approx(-(targets * log_shares).sum(), rel=1e-12)


def test_balanced_weights_give_every_class_the_same_sum() -> None:
    labels = [0] * 6 + [1] * 3 + [3]
    weights = balanced_weights(labels, 5)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 1, 10 / 3, 1])
    assert float(weights[labels].mean()) == pytest.approx(1)


def test_weights_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.csv"
    path.write_text('name,weight\n"a, b",2\nc,0.5\n')
    assert read_class_weights(path, ["c", "a, b"]).tolist() == [0.5, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,1\n", "1 classes have no weight; the first: 'b'"),
        ("a,1\nb,0\n", "'b' with weight 0: not above 0"),
        ("a,1\nb,nan\n", "'b' with weight nan: not above 0"),
        ("a,1\na,2\nb,1\n", "'a' with weight 2: listed twice"),
        ("a,1\nb,1\nc,1\n", "'c' with weight 1: no such class"),
        ("a,1\nb,heavy\n", "expected `name,weight`, found 'b,heavy'"),
        ("a\n", "expected `name,weight`, found 'a'"),
        ('a,"1\n', "cannot be read"),
    ],
)
def test_wrong_weights(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "weights.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_class_weights(path, ["a", "b"])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_class_weights(tmp_path / "none.csv", ["a", "b"])
