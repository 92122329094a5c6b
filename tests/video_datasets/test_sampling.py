"""Frame indices against the rules written out by hand."""

import numpy as np
import pytest

from video_datasets import sampling


def test_train_takes_one_frame_of_each_segment():
    rng = np.random.default_rng(0)
    draws = np.stack([sampling.train_indices(35, 8, rng) for _ in range(400)])  # segments of 4, frames 32..34 unused
    assert draws.shape == (400, 8) and draws.dtype == np.int64
    for i in range(8):
        assert set(draws[:, i]) == {4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3}
    assert abs((draws % 4).mean() - 1.5) < 0.1


def test_train_short_videos_are_spread_and_draw_nothing():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    # round(i * 5 / 8) = round(0, .625, 1.25, 1.875, 2.5, 3.125, 3.75, 4.375), half to even
    assert sampling.train_indices(5, 8, rng).tolist() == [0, 1, 1, 2, 2, 3, 4, 4]
    # round(i * 7 / 8) ends at round(6.125); round(i * 3 / 4) = 0, .75, 1.5, 2.25
    assert sampling.train_indices(3, 4, rng).tolist() == [0, 1, 2, 2]
    # 15/16 of the way round(i * 15 / 16) reaches 14
    assert sampling.train_indices(15, 16, rng).tolist() == [round(i * 15 / 16) % 15 for i in range(16)]
    # a video of one frame: round(i / 4) = 0, .25, .5, .75 -> the last is 1 and loops to 0
    assert sampling.train_indices(1, 4, rng).tolist() == [0, 0, 0, 0]
    assert rng.bit_generator.state == before


@pytest.mark.parametrize("num_video_frames", [1, 2, 15, 16, 17, 72, 240, 300, 333, 9001])
@pytest.mark.parametrize("num_frames", [1, 8, 16, 32])
def test_one_view_is_the_middle_of_each_segment(num_video_frames, num_frames):
    expected = [
        int(i * num_video_frames / num_frames + num_video_frames / num_frames / 2) % num_video_frames
        for i in range(num_frames)
    ]
    assert sampling.test_indices(num_video_frames, num_frames).tolist() == [expected]


def test_views_take_their_own_point_of_each_segment():
    # 80 frames, 4 wanted: segments of 20; four views at 2.5, 7.5, 12.5, 17.5 of each
    assert sampling.test_indices(80, 4, num_clips=4).tolist() == [
        [2, 22, 42, 62],
        [7, 27, 47, 67],
        [12, 32, 52, 72],
        [17, 37, 57, 77],
    ]
    # 10 frames, 4 wanted: segments of 2.5; two views at .625 and 1.875 of each
    assert sampling.test_indices(10, 4, num_clips=2).tolist() == [[0, 3, 5, 8], [1, 4, 6, 9]]


def test_golden_indices(golden_dir):
    golden = np.load(golden_dir / "test_view_pixels.npz")
    videos = {key.split("/")[0] for key in golden}
    assert len(videos) == 3
    for video in videos:
        indices = sampling.test_indices(int(golden[f"{video}/num_frames"]), 16)
        np.testing.assert_array_equal(indices[0], golden[f"{video}/frame_indices"])


def test_published_views_draw_as_in_training():
    views = sampling.random_test_indices(64, 4, 3, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    assert views.tolist() == [sampling.train_indices(64, 4, rng).tolist() for _ in range(3)]
    assert (views // 16 == np.arange(4)).all() and len({tuple(view) for view in views}) == 3


def test_impossible_counts_are_errors():
    with pytest.raises(ValueError, match="cannot choose 8 frames from a video of 0"):
        sampling.test_indices(0, 8)
    with pytest.raises(ValueError, match="cannot choose 0 frames"):
        sampling.train_indices(5, 0, np.random.default_rng(0))
