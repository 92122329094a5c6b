"""Mixed videos and targets against the same arithmetic written out."""

import numpy as np
import pytest
import torch

from video_datasets.mixing import Mixing, cutmix_box


@pytest.fixture
def batch():
    videos = torch.randn(5, 3, 3, 20, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return videos, torch.tensor([0, 3, 1, 1, 6])


def smoothed(labels, num_classes=7, smoothing=0.1):
    rows = np.full((len(labels), num_classes), smoothing / num_classes)
    for row, label in zip(rows, labels.tolist(), strict=True):
        row[label] = 1 - smoothing + smoothing / num_classes
    return rows


def test_label_smoothing_alone(batch):
    videos, labels = batch
    mixed, targets = Mixing(7, mixup_alpha=0, cutmix_alpha=0)(videos, labels, np.random.default_rng(0))
    assert torch.equal(mixed, videos) and targets.dtype == videos.dtype == torch.float64
    np.testing.assert_allclose(targets, smoothed(labels), rtol=1e-12)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-12)
    assert Mixing(7)(videos.float(), labels, np.random.default_rng(0))[1].dtype == torch.float32
    plain = Mixing(7, mixup_alpha=0, cutmix_alpha=0, label_smoothing=0)(videos, labels, np.random.default_rng(0))[1]
    assert torch.equal(plain, torch.nn.functional.one_hot(labels, 7).double())


def test_mixup_is_one_blend_of_the_batch_with_its_permutation(batch):
    videos, labels = batch
    before = videos.clone()
    for seed in range(20):
        mixed, targets = Mixing(7, cutmix_alpha=0)(videos, labels, np.random.default_rng(seed))
        assert torch.equal(videos, before)
        rng = np.random.default_rng(seed)
        share, partners = rng.beta(0.8, 0.8), rng.permutation(5)
        expected = share * videos.numpy() + (1 - share) * videos.numpy()[partners]
        np.testing.assert_allclose(mixed, expected, rtol=1e-10, atol=1e-12)
        rows = smoothed(labels)
        np.testing.assert_allclose(targets, share * rows + (1 - share) * rows[partners], rtol=1e-10)


def test_cutmix_pastes_one_box_and_counts_its_true_area(batch):
    _, labels = batch
    # every pixel holds the number of its video
    videos = torch.arange(5.0).view(5, 1, 1, 1, 1).expand(5, 3, 3, 20, 24).contiguous()
    areas = set()
    for seed in range(60):
        mixed, targets = Mixing(7, mixup_alpha=0)(videos, labels, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        share, partners = rng.beta(1.0, 1.0), rng.permutation(5)
        pasted = mixed != videos
        moved = partners != np.arange(5)
        if not moved.any():
            continue
        box = pasted[moved][0, 0, 0]  # (H, W)
        assert (pasted[moved] == box).all() and not pasted[~moved].any()
        for i in range(5):
            assert (mixed[i][:, :, box] == partners[i]).all()
        rows, columns = box.any(1).nonzero(), box.any(0).nonzero()
        area = int(box.sum())
        if area:
            assert area == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert area <= (1 - share) * 20 * 24 + 1e-9
        areas.add(area)
        kept = 1 - area / (20 * 24)
        np.testing.assert_allclose(
            targets, kept * smoothed(labels) + (1 - kept) * smoothed(labels)[partners], rtol=1e-5
        )
    assert len(areas) > 20


def test_box_sides_and_edges():
    boxes = np.array([cutmix_box(100, 60, 0.75, np.random.default_rng(seed)) for seed in range(2000)])
    top, bottom, left, right = boxes.T
    # sqrt(1 - .75) = half of each side; cut off at the edges
    assert (bottom - top).max() == 50 and (right - left).max() == 30
    assert top.min() == 0 and bottom.max() == 100 and left.min() == 0 and right.max() == 60
    assert (bottom - top).min() <= 26 and (right - left).min() <= 16
    assert (
        cutmix_box(100, 60, 1.0, np.random.default_rng(0))[0] == cutmix_box(100, 60, 1.0, np.random.default_rng(0))[1]
    )


def test_switching_has_its_probability(batch):
    _, labels = batch
    videos = torch.arange(5.0).view(5, 1, 1, 1, 1).expand(5, 1, 1, 32, 32).contiguous()
    cut = blended = 0
    for seed in range(300):
        mixed, _ = Mixing(7)(videos, labels, np.random.default_rng(seed))
        if torch.equal(mixed, mixed.round()):
            cut += 1
        else:
            blended += 1
    assert 115 < cut < 185 and blended == 300 - cut


def test_a_single_video_stays_itself(batch):
    videos, labels = batch
    for seed in range(10):
        mixed, targets = Mixing(7)(videos[:1], labels[:1], np.random.default_rng(seed))
        torch.testing.assert_close(mixed, videos[:1])
        np.testing.assert_allclose(targets, smoothed(labels[:1]), rtol=1e-5)


@pytest.mark.gpu
def test_the_gpu_gives_the_same(batch):
    videos, labels = batch
    for seed in range(6):
        mixed, targets = Mixing(7)(videos, labels, np.random.default_rng(seed))
        on_gpu = Mixing(7)(videos.cuda(), labels.cuda(), np.random.default_rng(seed))
        torch.testing.assert_close(on_gpu[0].cpu(), mixed)
        torch.testing.assert_close(on_gpu[1].cpu(), targets)


def test_misuse_is_an_error():
    with pytest.raises(ValueError, match="alphas must be 0 or more"):
        Mixing(5, mixup_alpha=-1)
    with pytest.raises(ValueError, match="label_smoothing 1.0"):
        Mixing(5, label_smoothing=1.0)
