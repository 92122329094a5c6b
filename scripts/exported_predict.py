"""Run an exported classifier on videos: needs this file, the export and its packages, and nothing else.

    python exported_predict.py clip.mp4 --export folder [--format onnx]

Packages: numpy and av (PyAV), and onnxruntime for .onnx or torch for .pt2 and .aoti.pt2. `scripts/export.py` puts a
copy of this file beside what it exports.
"""

import argparse
import json
import sys
from pathlib import Path

import av
import numpy as np

SUFFIXES = {"onnx": ".onnx", "aoti": ".aoti.pt2", "pt2": ".pt2"}


def read_frames(path: str, num_frames: int) -> np.ndarray:
    """Return the middle frames of equal parts of a video, uint8 (T, H, W, 3), upright."""
    with av.open(path) as container:
        stream = container.streams.best("video")
        frames = list(container.decode(stream))
    if not frames:
        raise ValueError("no frames")
    chosen = [(2 * i + 1) * len(frames) // (2 * num_frames) for i in range(num_frames)]
    first = frames[0]
    pixels = [frames[i].to_ndarray(format="rgb24", width=first.width, height=first.height) for i in chosen]
    return np.stack([np.rot90(p, round(frames[i].rotation / 90)) for p, i in zip(pixels, chosen, strict=True)])


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize frames (T, H, W, 3) bilinearly, without antialiasing, pixel centres at halves."""

    def places(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = at.astype(int)
        return low, np.minimum(low + 1, old - 1), (at - low).astype(np.float32)

    top, bottom, down = places(frames.shape[1], height)
    left, right, along = places(frames.shape[2], width)
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


def load(folder: Path, kind: str):
    """Return a function from pixels, uint8 (B, T, 3, side, side), to logits (B, C)."""
    path = folder / f"classifier{SUFFIXES[kind]}"
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda pixels: session.run(["logits"], {"video": pixels})[0]
    import torch

    program = torch.export.load(path).module() if kind == "pt2" else torch._inductor.aoti_load_package(str(path))

    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return program(torch.from_numpy(pixels))[0].numpy()

    return run


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--export", type=Path, default=Path(__file__).parent, help="folder of export.json")
    parser.add_argument("--format", choices=list(SUFFIXES), help="default: the first that is there")
    parser.add_argument("--top", type=int, default=5)
    args = parser.parse_args(argv)
    facts = json.loads((args.export / "export.json").read_text(encoding="utf-8"))
    there = [kind for kind, suffix in SUFFIXES.items() if (args.export / f"classifier{suffix}").is_file()]
    kind = args.format or next(iter(there), None)
    if kind not in there:
        print(f"{args.export}: there is no classifier to run ({kind or 'pt2, aoti, onnx'})", file=sys.stderr)
        return 2
    run = load(args.export, kind)
    good = 0
    for video in args.videos:
        try:
            pixels = view(read_frames(video, facts["num_frames"]), facts["input_size"])
        except (OSError, ValueError, AttributeError) as error:  # PyAV's errors are OSErrors and ValueErrors
            print(f"{video}: cannot be read: {str(error).splitlines()[0] if str(error) else 'no video stream'}")
            continue
        logits = run(pixels[None])[0].astype(np.float64)
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
        print(video)
        for index in np.argsort(-scores, kind="stable")[: args.top]:
            print(f"  {facts['classes'][index]:<40} {100 * scores[index]:5.1f} %")
        good += 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
