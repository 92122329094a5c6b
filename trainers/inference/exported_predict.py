"""Run an export on videos. Needs only this file, the exported folder and a few packages.

    python exported_predict.py clip.mp4 --export folder [--format onnx]
    python exported_predict.py clip.mp4 --export folder --classes "riding a bike" surfing

With --classes any names are scored, by the programs `video` and `text`; without, those of the exported `classifier`.
Packages: numpy and av (PyAV), and onnxruntime for .onnx or torch for .pt2 and .aoti.pt2. The command `export` copies
this file into the folder.
"""

import argparse
import gzip
import html
import itertools
import json
import os
import re
import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

SUFFIXES = {"onnx": ".onnx", "aoti": ".aoti.pt2", "pt2": ".pt2"}


# FFmpeg opens this file alone, as a video, whatever its name says: no playlist leads to other files or addresses.
FORMATS = "asf,avi,flv,gif,matroska,mov,mpeg,mpegts,mpegvideo,mxf,nut,ogg"
OPEN_OPTIONS: dict[str, Any] = {
    "options": {"format_whitelist": FORMATS, "protocol_whitelist": "file", "max_pixels": "36000000"},
    # Some files have tags that are not UTF-8. PyAV 19 always reads them; before, they were an error unless ignored.
    **({} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}),
}
MAX_KEPT_PIXELS = 128_000_000  # of frames that are kept until their number is known; others are decoded twice


def frames_in_order(path: str) -> Iterator[av.VideoFrame]:
    """Yield the frames of a video in the order in which they are shown."""
    with av.open(os.path.abspath(path), "r", **OPEN_OPTIONS) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("no video stream")
        yield from (frame for frame in container.decode(stream) if isinstance(frame, av.VideoFrame))


def read_frames(path: str, num_frames: int) -> np.ndarray:
    """Return the middle frames of equal parts of a video, uint8 (T, H, W, 3), upright."""
    kept: dict[int, av.VideoFrame] = {}
    first: av.VideoFrame | None = None
    count = pixels = 0
    for frame in frames_in_order(path):
        first = first or frame
        pixels += frame.width * frame.height
        if pixels <= MAX_KEPT_PIXELS:
            kept[count] = frame
        count += 1
    if first is None:
        raise ValueError("no frames")
    chosen = [(2 * i + 1) * count // (2 * num_frames) for i in range(num_frames)]
    if len(kept) < count:
        kept = {i: frame for i, frame in enumerate(frames_in_order(path)) if i in chosen}
    stored = [kept[i].to_ndarray(format="rgb24", width=first.width, height=first.height) for i in chosen]
    return upright(np.stack(stored), first)


def upright(pixels: np.ndarray, first: av.VideoFrame) -> np.ndarray:
    """Turn and mirror frames (T, H, W, 3) as the display matrix of the first one says; PyAV only reports it."""
    data: Any = first.side_data.get("DISPLAYMATRIX")
    if data is None:
        return pixels
    # A stored point (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = (int(number) for number in np.frombuffer(bytes(data), np.int32)[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.transpose(0, 2, 1, 3), c, b
    return pixels[:, :: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize frames (T, H, W, 3) bilinearly, without antialiasing; pixel centres are at halves."""

    def neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = at.astype(int)
        return low, np.minimum(low + 1, old - 1), (at - low).astype(np.float32)

    top, bottom, down = neighbours(frames.shape[1], height)
    left, right, along = neighbours(frames.shape[2], width)
    frames = frames.astype(np.float32)
    rows = frames[:, top] * (1 - down)[:, None, None] + frames[:, bottom] * down[:, None, None]
    return rows[:, :, left] * (1 - along)[:, None] + rows[:, :, right] * along[:, None]


def view(frames: np.ndarray, side: int) -> np.ndarray:
    """Return the centre view that the model reads, uint8 (T, 3, side, side)."""
    short = int(256 / 224 * side)
    scale = short / min(frames.shape[1:3])
    frames = resize(frames, int(frames.shape[1] * scale + 0.5), int(frames.shape[2] * scale + 0.5))
    top, left = (frames.shape[1] - side) // 2, (frames.shape[2] - side) // 2
    frames = np.rint(frames[:, top : top + side, left : left + side]).astype(np.uint8)
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2))


# Contractions, words of letters, single numerals ("²" is one, but not a digit in Python), runs of other characters.
NUMERALS = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if c.isnumeric() and not c.isalpha())
WORD = re.compile(rf"'(?:s|t|re|ve|m|ll|d)|[^\W\d_{NUMERALS}]+|[\d{NUMERALS}]|(?:[^\s\w]|_)+", re.IGNORECASE)
START, END, FIRST_MERGE, NUM_BYTES = 49406, 49407, 512, 256


class Tokenizer:
    """CLIP's byte-pair encoding from its vocabulary file: class names to tokens int64 (C * templates, L)."""

    def __init__(self, vocabulary: Path):
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = sorted(set(range(NUM_BYTES)) - set(printable))
        self.byte_ids = {byte: index for index, byte in enumerate(printable + others)}
        letters = [chr(byte) for byte in printable] + [chr(NUM_BYTES + index) for index in range(len(others))]
        ids = {letter: index for index, letter in enumerate(letters)}
        ids |= {letter + "</w>": NUM_BYTES + index for index, letter in enumerate(letters)}
        self.merges: dict[tuple[int, int], int] = {}
        with gzip.open(vocabulary, "rt", encoding="utf-8") as lines:
            for merged, line in enumerate(itertools.islice(lines, 1, 1 + START - FIRST_MERGE), start=FIRST_MERGE):
                left, right = line.split()
                self.merges[ids[left], ids[right]] = merged
                ids[left + right] = merged

    def __call__(self, names: list[str], facts: dict) -> np.ndarray:
        texts = prompts(names, facts)
        tokens = np.zeros((len(texts), facts["context_length"]), dtype=np.int64)
        for row, text in zip(tokens, texts, strict=True):
            encoded = [START, *self.encode(text), END]
            if len(encoded) > len(row):
                raise SystemExit(f"{text!r} has {len(encoded)} tokens; the model reads {len(row)}")
            row[: len(encoded)] = encoded
        return tokens

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without start and end."""
        text = " ".join(html.unescape(html.unescape(text)).split()).lower()
        return [token for word in WORD.findall(text) for token in self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        ids = [self.byte_ids[byte] for byte in word.encode("utf-8")]
        ids[-1] += NUM_BYTES  # the last byte of a word has its own id
        while known := [self.merges[pair] for pair in itertools.pairwise(ids) if pair in self.merges]:
            first, merged, position = min(known), [], 0  # the earliest merge of the table
            while position < len(ids):
                fits = position + 1 < len(ids) and self.merges.get((ids[position], ids[position + 1])) == first
                merged.append(first if fits else ids[position])
                position += 1 + fits
            ids = merged
        return ids


def prompts(names: list[str], facts: dict) -> list[str]:
    """Return the texts of class names, those of a class after one another."""
    return [template.replace("{}", clean_name(name, facts)) for name in names for template in facts["templates"]]


class FileTokenizer:
    """A tokenizer.json: class names to padded tokens int64 (C * templates, L)."""

    def __init__(self, vocabulary: Path):
        from tokenizers import Tokenizer as Vocabulary

        self.vocabulary = Vocabulary.from_file(str(vocabulary))
        self.vocabulary.no_truncation()
        self.vocabulary.no_padding()

    def __call__(self, names: list[str], facts: dict) -> np.ndarray:
        texts = [html.unescape(html.unescape(text)).replace("_", " ") for text in prompts(names, facts)]
        if facts["cleaning"] == "canonicalize":
            texts = [text.translate(str.maketrans("", "", string.punctuation)) for text in texts]
        tokens = np.full((len(texts), facts["context_length"]), facts["pad_token"], dtype=np.int64)
        for row, text in zip(tokens, texts, strict=True):
            encoded = self.vocabulary.encode(" ".join(text.lower().split())).ids
            if len(encoded) > len(row):
                raise SystemExit(f"{text!r} has {len(encoded)} tokens; the model reads {len(row)}")
            row[: len(encoded)] = encoded
        return tokens


def clean_name(name: str, facts: dict) -> str:
    """Return a class name as words, by the model's rule for capitals."""
    name = name.replace("_", " ")
    return re.sub(r"([A-Z])", r" \1", name).strip() if facts["split_camel_case"] else name


def load(path: Path, kind: str) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    """Return a program as a function of its inputs by name, in order."""
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        wanted = {node.name for node in session.get_inputs()}  # a graph omits inputs that it does not need
        return lambda inputs: session.run(None, {name: value for name, value in inputs.items() if name in wanted})
    import torch

    program = torch.export.load(path).module() if kind == "pt2" else torch._inductor.aoti_load_package(str(path))

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in program(*map(torch.from_numpy, inputs.values()))]

    return run


def scorer(folder: Path, kind: str | None, facts: dict, names: list[str] | None) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from pixels, uint8 (B, T, 3, side, side), to logits (B, C)."""
    needed = ["classifier"] if names is None else ["video", "text"]
    kinds = [kind] if kind else list(SUFFIXES)
    for kind in kinds:
        paths = [folder / f"{program}{SUFFIXES[kind]}" for program in needed]
        if all(path.is_file() for path in paths):
            break
    else:
        raise SystemExit(f"{folder}: no {' and '.join(needed)} as {', '.join(kinds)}; export.py --programs writes them")
    programs = [load(path, kind) for path in paths]
    if names is None:
        return lambda pixels: programs[0]({"video": pixels})[0]
    vocabulary = folder / facts["vocabulary"]
    tokens = (FileTokenizer if vocabulary.suffix == ".json" else Tokenizer)(vocabulary)(names, facts)

    def score(pixels: np.ndarray) -> np.ndarray:
        features, *contexts = programs[0]({"video": pixels})
        named = {f"context_{index}": context for index, context in enumerate(contexts)}
        return programs[1]({"tokens": tokens, "features": features, **named})[0]

    return score


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, or 1 if no video could be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--export", type=Path, default=Path(__file__).parent, help="folder of export.json")
    parser.add_argument("--format", choices=list(SUFFIXES), help="default: the first that exists")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="other class names than the classifier's")
    parser.add_argument("--top", type=int, default=5)
    args = parser.parse_args(argv)
    facts = json.loads((args.export / "export.json").read_text(encoding="utf-8"))
    classes = args.classes or facts["classes"]
    run = scorer(args.export, args.format, facts, args.classes)
    num_read = 0
    for video in args.videos:
        try:
            pixels = view(read_frames(video, facts["num_frames"]), facts["input_size"])
        except Exception as error:  # a damaged file can lead a decoder to any error
            print(f"{video}: cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        logits = run(pixels[None])[0].astype(np.float64)
        if facts.get("scores") == "sigmoid":  # each class has a score of its own
            scores = 0.5 * (1 + np.tanh(logits / 2))
        else:
            scores = np.exp(logits - logits.max())
            scores /= scores.sum()
        print(video)
        for index in np.argsort(-scores, kind="stable")[: args.top]:
            print(f"  {classes[index]:<40} {100 * scores[index]:5.1f} %")
        num_read += 1
    return 0 if num_read else 1


if __name__ == "__main__":
    sys.exit(main())
