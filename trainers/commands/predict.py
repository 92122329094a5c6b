"""Name the actions in videos: files, folders, globs or lists, in any mixture, a table a video.

python scripts/predict.py clip.mp4 --checkpoint runs/first/best.pth --classes "riding a bike" surfing
python scripts/predict.py folder 'more/**/*.mkv' list.txt --checkpoint best.pth --classes hmdb51 --csv scores.csv
python scripts/predict.py long.mp4 --checkpoint best.pth --classes classes.txt --window 4 --stride 2
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from trainers.commands.shared import (
    add_model_arguments,
    load_named_model,
    make_folder,
    names_for,
    positive,
    write_timeline_csv,
)
from trainers.config.command_line import one_line_errors
from trainers.csv_files import write_csv
from trainers.errors import ConfigError
from trainers.inference.inputs import find_videos, read_classes
from video_datasets.decoders import DECODER_NAMES

BAR_WIDTH = 24


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", help="files, folders, globs in quotes, .txt lists")
    add_model_arguments(parser)
    parser.add_argument(
        "--classes",
        nargs="+",
        required=True,
        help="class names; or a file of them (.txt a name a line, .csv, .json), or a label set as hmdb51",
    )
    parser.add_argument("--top", type=positive(int), default=5, help="classes to report of each video (default 5)")
    parser.add_argument("--views", type=positive(int), default=1, help="temporal views of a video (default 1)")
    parser.add_argument("--crops", type=int, choices=[1, 3], default=1, help="spatial views of a video (default 1)")
    parser.add_argument("--batch-size", type=positive(int), default=4, help="videos of a forward pass (default 4)")
    parser.add_argument("--workers", type=int, help="processes that decode (default: one a core; none for one video)")
    parser.add_argument("--decoder", choices=DECODER_NAMES, default="auto")
    parser.add_argument("--timeout", type=positive(float), default=60.0, help="seconds after which a video hangs (60)")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON ('-': to standard output, no table)")
    parser.add_argument("--csv", metavar="FILE", help="write a line a class and video as CSV ('-': likewise)")
    parser.add_argument(
        "--window", type=positive(float), help="seconds: a timeline of windows this long, as CSV and PNG"
    )
    parser.add_argument("--stride", type=positive(float), help="seconds between windows (default: half a window)")
    parser.add_argument("--output", type=Path, default=Path("runs/timelines"), help="folder of the timelines")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, or 1 where no video could be read."""
    args = parse(argv)
    with one_line_errors():
        if args.stride and not args.window:
            raise ConfigError("--stride goes with --window")
        if args.workers is not None and args.workers < 0:
            raise ConfigError("--workers must be 0 or more")
        videos = find_videos(args.videos)
        classes = read_classes(args.classes)
        started = time.perf_counter()
        model = load_named_model(args, classes)
        say(f"{model.name}, {len(classes)} classes, {len(videos)} videos; loaded in {_since(started)}")
        if args.window:
            return timelines(model, videos, args)
        return predictions(model, videos, args)


def predictions(model, videos: list[str], args: argparse.Namespace) -> int:
    """Predict videos and tell the results; return the exit status."""
    from trainers.inference.predict import iter_predictions

    quiet = "-" in (args.json, args.csv)
    done = []
    started = time.perf_counter()
    for item in iter_predictions(
        model,
        videos,
        top=args.top,
        num_clips=args.views,
        num_crops=args.crops,
        batch_size=args.batch_size,
        num_workers=args.workers,
        precision=args.precision,
        decoder=args.decoder,
        timeout_s=args.timeout,
    ):
        done.append(item)
        if not quiet:
            print(table(item), flush=True)
    good = sum(item.error is None for item in done)
    spent = time.perf_counter() - started
    unread = f", {len(done) - good} could not be read" if good < len(done) else ""
    say(f"{good} videos in {spent:.1f} s ({spent / len(done):.2f} s a video){unread}")
    write_machine_files(done, args)
    return 0 if good else 1


def table(item) -> str:
    """Return a prediction as text: the video, then a class a line with its score as a bar."""
    if item.error is not None:
        return f"{item.path}: cannot be read: {item.error}"
    width = min(max(map(len, item.classes)), max(20, shutil.get_terminal_size().columns - BAR_WIDTH - 12))
    lines = [f"{item.path}  ({item.seconds:.2f} s)"]
    for name, score in zip(item.classes, item.scores, strict=True):
        bar = "█" * int(score * BAR_WIDTH) + " ▏▎▍▌▋▊▉"[int(score * BAR_WIDTH % 1 * 8)]
        lines.append(f"  {name:<{width}}  {100 * score:5.1f} %  {bar}".rstrip())
    return "\n".join(lines)


def write_machine_files(done: list, args: argparse.Namespace) -> None:
    """Write predictions as JSON and CSV where asked for."""
    if args.json:
        records = [
            {"video": item.path, "error": item.error, "seconds": round(item.seconds, 4)}
            | {"predictions": [{"class": n, "score": s} for n, s in zip(item.classes, item.scores, strict=True)]}
            for item in done
        ]
        _write(args.json, json.dumps(records, indent=1, ensure_ascii=False) + "\n")
    if args.csv:
        header = ["video", "rank", "class", "score", "error"]
        rows: list[list[object]] = []
        for item in done:
            if item.error is not None:
                rows.append([item.path, "", "", "", item.error])
            for rank, (name, score) in enumerate(zip(item.classes, item.scores, strict=True), start=1):
                rows.append([item.path, rank, name, f"{score:.6f}", ""])
        if args.csv == "-":
            write_csv(sys.stdout, header, rows, lineterminator="\n")
        else:
            with open(args.csv, "w", newline="", encoding="utf-8") as file:
                write_csv(file, header, rows)


def timelines(model, videos: list[str], args: argparse.Namespace) -> int:
    """Score videos window by window; write a CSV and a picture of each; return the exit status."""
    from trainers.inference.predict import predict_timeline
    from trainers.inference.visualize.draw import timeline_picture
    from video_datasets.decoding import VideoReadError

    folder = make_folder(args.output)
    good = 0
    for video, name in zip(videos, names_for(videos), strict=True):
        started = time.perf_counter()
        try:
            timeline = predict_timeline(
                model,
                video,
                args.window,
                args.stride or args.window / 2,
                num_crops=args.crops,
                batch_size=args.batch_size,
                precision=args.precision,
                timeout_s=args.timeout,
            )
        except VideoReadError as error:
            print(f"{video}: cannot be read: {error.reason}", flush=True)
            continue
        good += 1
        write_timeline_csv(folder / f"{name}.csv", timeline, args.top)
        timeline_picture(timeline, args.top).save(folder / f"{name}.png")
        print(f"{video}  {timeline.ends[-1]:.1f} s, {len(timeline.starts)} windows  ({_since(started)})")
        for start, end, best, score in _runs(timeline):
            print(f"  {start:7.1f} - {end:7.1f} s  {best}  {100 * score:.1f} %")
        if timeline.error:
            print(f"  breaks off: {timeline.error}")
        print(f"  {folder / name}.csv, .png", flush=True)
    return 0 if good else 1


def _runs(timeline) -> list[tuple[float, float, str, float]]:
    """Return the stretches with one best class: start, end, class, mean score."""
    best = timeline.scores.argmax(axis=1)
    firsts = [0, *(i for i in range(1, len(best)) if best[i] != best[i - 1]), len(best)]
    return [
        (
            float(timeline.starts[first]),
            float(timeline.ends[last - 1]),
            timeline.class_names[best[first]],
            float(timeline.scores[first:last, best[first]].mean()),
        )
        for first, last in zip(firsts, firsts[1:], strict=False)
    ]


def say(line: str) -> None:
    """Tell the user something that is no result."""
    print(line, file=sys.stderr, flush=True)


def _since(started: float) -> str:
    return f"{time.perf_counter() - started:.1f} s"


def _write(path: str, text: str) -> None:
    if path == "-":
        sys.stdout.write(text)
    else:
        Path(path).write_text(text, encoding="utf-8")
