"""The rephrased class names: one sentence per class, consistent with the class names, no two alike."""

import csv
import itertools
import re
from pathlib import Path

import pytest

from tc_clip.prompts import prompt_of
from tc_clip.tokenizer import count_tokens
from video_datasets.annotations import read_class_names

K600_SPLITS = ("k600_split1", "k600_split2", "k600_split3")
COUNTS = {
    "k400": 400, "k400_base": 200, "k400_novel": 200,
    **dict.fromkeys(K600_SPLITS, 160),
    "hmdb51": 51, "hmdb51_base": 26, "hmdb51_novel": 25,
    "ucf101": 101, "ucf101_base": 51, "ucf101_novel": 50,
}  # fmt: skip
NUM_K600_CLASSES = 217  # of the three splits together
# The files whose classes stand together, and the plain file with all names of that data set.
DATA_SETS = {"k400": ["k400"], "k600": [*K600_SPLITS], "hmdb51": ["hmdb51"], "ucf101": ["ucf101"]}

# Words that two sentences share, over all words of both. Sentences on different scenes share "a", "the" and a few
# words more: 0.07 on average over all pairs, 0.43 at most (the head stand and the stand on the hands). A sentence of
# 14 words with one exchanged is 0.87 like the first, with four exchanged 0.56. The bound is between the two.
MAX_SIMILARITY = 0.5
MIN_WORDS = 8  # fewer add little to the class name


def words_of(class_name: str) -> str:
    """Return a class name of any data set as words: `BabyCrawling` is `Baby Crawling`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", class_name)


def word_list(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def similarity(first: str, second: str) -> float:
    """Return the Jaccard index of two sentences' sets of words."""
    a, b = set(word_list(first)), set(word_list(second))
    return len(a & b) / len(a | b)


def stem(word: str) -> str:
    """Return a word without its ending, the same for `run`, `runs`, `running`, or `dive`, `dives`, `diving`."""
    word = re.sub(r"(?<=..)(ies|ied)$", "y", word)
    root = re.sub(r"(ing|ed|es|(?<!s)s)$", "", word)
    if not re.search(r"[aeiouy]", root) or len(root) < 3:  # the ending was part of the word: `swing`, `red`
        root = word
    if re.search(r"([^aeiouls])\1$", root):
        root = root[:-1]
    return root.removesuffix("e")


def stems(text: str) -> str:
    """Return the stems of a text's words, each between spaces, to look for phrases in."""
    return " " + " ".join(stem(word) for word in word_list(text)) + " "


def classes_named(sentence: str, class_names: list[str]) -> list[str]:
    """Return the classes whose name, without what it has in brackets, occurs in a sentence in any inflection."""
    text = stems(sentence)
    return [name for name in class_names if stems(re.sub(r"\(.*?\)", "", words_of(name))) in text]


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "labels" / "llm"


@pytest.fixture(scope="module")
def plain(repository: Path) -> dict[str, list[str]]:
    return {name: read_class_names(repository / "labels" / f"{name}.csv") for name in (*COUNTS, "k600")}


@pytest.fixture(scope="module")
def rephrased(folder: Path) -> dict[str, list[str]]:
    return {name: read_class_names(folder / f"{name}.csv") for name in COUNTS}


@pytest.fixture(scope="module")
def sentences(plain: dict[str, list[str]], rephrased: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    """Return for each data set the sentence of each class."""
    return {
        data_set: {
            label: name.partition(": ")[2]
            for file in files
            for label, name in zip(plain[file], rephrased[file], strict=True)
        }
        for data_set, files in DATA_SETS.items()
    }


def test_no_file_is_unknown(folder: Path) -> None:
    assert {path.stem for path in folder.glob("*.csv")} == set(COUNTS)


@pytest.mark.parametrize("file", COUNTS)
def test_ids_are_complete_and_in_line_order(folder: Path, file: str) -> None:
    with open(folder / f"{file}.csv", newline="", encoding="ascii") as lines:
        rows = list(csv.reader(lines))
    assert rows[0] == ["id", "name"]
    assert [row[0] for row in rows[1:]] == [str(index) for index in range(COUNTS[file])]
    assert all(len(row) == 2 for row in rows)


@pytest.mark.parametrize("file", COUNTS)
def test_each_name_keeps_the_words_of_the_plain_one_of_its_id(
    plain: dict[str, list[str]], rephrased: dict[str, list[str]], file: str
) -> None:
    own_words = [name.partition(": ")[0] for name in rephrased[file]]
    assert [words.lower() for words in own_words] == [words_of(label).lower() for label in plain[file]]
    assert all(words[0].isupper() for words in own_words)


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_what_follows_is_one_sentence(sentences: dict[str, dict[str, str]], data_set: str) -> None:
    """The prompt adds the full stop."""
    for label, sentence in sentences[data_set].items():
        assert sentence[0].isupper() and sentence[-1].isalnum(), label
        assert not re.search(r"[.:;!?\"]", sentence), label
        assert sentence == " ".join(sentence.split()), label
        assert len(word_list(sentence)) >= MIN_WORDS, label


@pytest.mark.parametrize("file", COUNTS)
def test_every_prompt_fits(rephrased: dict[str, list[str]], file: str) -> None:
    lengths = {name: count_tokens(prompt_of(name, "a photo of a", split_camel_case=True)) for name in rephrased[file]}
    assert {name: length for name, length in lengths.items() if length > 77} == {}


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_no_two_sentences_are_alike(sentences: dict[str, dict[str, str]], data_set: str) -> None:
    alike = [
        (first, second, round(score, 2))
        for (first, a), (second, b) in itertools.combinations(sentences[data_set].items(), 2)
        if (score := similarity(a, b)) >= MAX_SIMILARITY
    ]
    assert alike == []


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_no_sentence_names_another_class(
    plain: dict[str, list[str]], sentences: dict[str, dict[str, str]], data_set: str
) -> None:
    named = {
        label: others
        for label, sentence in sentences[data_set].items()
        if (others := [name for name in classes_named(sentence, plain[data_set]) if name != label])
    }
    assert named == {}


@pytest.mark.parametrize(
    ("sentence", "named"),
    [
        ("A man runs along a beach", ["run"]),
        ("A dog is running and jumped", ["run", "jump"]),
        ("Divers wait for the bus", []),
        ("Two people dive, then they play in the waves", ["dive", "wave"]),
        ("A prune on a trunk", []),
        ("Someone is skiing", ["skiing (not slalom)"]),
        ("She is doing push ups", ["PushUps"]),
        ("He swings and hits", ["swing", "hit"]),
        ("A baby cries as an athlete bench presses", ["crying", "BenchPress"]),
    ],
)
def test_names_are_found_in_any_inflection(sentence: str, named: list[str]) -> None:
    names = ["run", "jump", "dive", "wave", "skiing (not slalom)", "PushUps", "swing", "hit", "crying", "BenchPress"]
    assert classes_named(sentence, names) == named


def test_one_word_exchanged_is_alike_and_another_scene_is_not() -> None:
    first = "A child springs up and down on a round netted mat in the backyard"
    assert similarity(first, first.replace("child", "girl")) > MAX_SIMILARITY
    assert similarity(first, "Two players in caps toss a small white ball into leather gloves") < MAX_SIMILARITY


@pytest.mark.parametrize("whole", ["k400", "hmdb51", "ucf101"])
@pytest.mark.parametrize("half", ["base", "novel"])
def test_halves_say_what_the_whole_says(
    plain: dict[str, list[str]], rephrased: dict[str, list[str]], whole: str, half: str
) -> None:
    of_class = dict(zip(plain[whole], rephrased[whole], strict=True))
    assert rephrased[f"{whole}_{half}"] == [of_class[label] for label in plain[f"{whole}_{half}"]]


def test_the_splits_say_the_same_of_a_class(plain: dict[str, list[str]], rephrased: dict[str, list[str]]) -> None:
    pairs = {pair for split in K600_SPLITS for pair in zip(plain[split], rephrased[split], strict=True)}
    assert len(pairs) == len({label for label, _ in pairs}) == NUM_K600_CLASSES


def test_readme_names_every_file_and_the_author(folder: Path) -> None:
    readme = (folder / "README.md").read_text()
    assert [file for file in COUNTS if f"`{file}.csv`" not in readme] == []
    assert "language model" in readme and "FROSTER" in readme
