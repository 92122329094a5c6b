"""Labels against the class words in paths, with names as the real data sets have them."""

import pytest

from video_datasets.annotations import VideoRecord
from video_datasets.label_words import compare_labels

HMDB = ["draw sword", "kick ball", "kick", "shoot ball", "sword exercise", "sword"]
END = "f_cm_np1_fr_med_0.avi"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"A_ball_to_kick_kick_ball_{END}", "kick ball"),
        (f"kick_ball_tricks_kick_{END}", "kick"),
        (f"Lord_of_the_sword_draw_sword_{END}", "draw sword"),
        (f"prelinger_sword_exercise_{END}", "sword exercise"),
        (f"sword/the_kick_ball_{END}", "sword"),
        (f"HMDB51\\kick_ball\\x_{END}", "kick ball"),
    ],
)
def test_the_class_that_ends_last_or_the_folder(path: str, name: str) -> None:
    assert not compare_labels([VideoRecord(path, HMDB.index(name))], HMDB).differing
    wrong = (HMDB.index(name) + 1) % len(HMDB)
    assert compare_labels([VideoRecord(path, wrong)], HMDB).differing == {(HMDB[wrong], name): 1}


def test_other_spellings_and_rephrased_names() -> None:
    names = ["HandstandPushups", "YoYo", "petting animal (not cat)", "Kick ball: a person meets a ball"]
    paths = ["v_HandStandPushups_g01_c01.avi", "YoYo/v_YoYo_g02_c03.avi", "val/petting animal (not cat)/x-1_0.mp4"]
    records = [VideoRecord(path, label) for label, path in enumerate([*paths, f"me_kick_ball_{END}"])]
    comparison = compare_labels(records, names)
    assert (comparison.num_compared, comparison.differing) == (4, {})
    assert str(comparison) == "as in the paths"


def test_paths_without_class_words_are_not_compared() -> None:
    records = [VideoRecord(f"val/kick-{index:09d}_000417.mp4", index % 6) for index in range(9)]
    assert compare_labels(records, ["abseiling", "zumba", "a", "b", "c", "0"]) is None
    assert compare_labels([VideoRecord(f"{index}.webm", 0) for index in range(9)], ["0", "1"]) is None
    assert compare_labels([], HMDB) is None


def test_differences_are_counted_in_words() -> None:
    records = [VideoRecord(f"{index}_kick_ball_{END}", 2) for index in range(3)] + [VideoRecord(f"x_kick_{END}", 1)]
    records += [VideoRecord(f"{index}_sword_{END}", 5) for index in range(1500)]
    expected = "other than in the paths: 4 of 1,504 videos (kick for kick ball, kick ball for kick)"
    assert str(compare_labels(records, HMDB)) == expected
