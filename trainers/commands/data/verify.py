"""Look at every video before a training run meets it: is it there, does it decode, is it what its list says.

    python scripts/data/verify.py --data few_shot_hmdb51 shot=16        # all lists of a configuration
    python scripts/data/verify.py --list my.txt --videos data/mine --class-names my_classes.csv
    python scripts/data/verify.py --videos data/hmdb51 --full            # every video below a folder or in a tar

Quick by default: the frames of one test view are decoded. --full decodes every frame in order and compares their number
with what the file claims. A video that hangs is given up after --time-limit. The folder --output gets videos.csv (all),
problems.csv, summary.html and summary.md with pictures of samples, and bad_videos.txt, the unreadable ones, which
training leaves out with data.bad_videos=<that file>. A second start goes on where the first one stopped.

Exit status: 0 safe to train; 1 more than --max-bad-share of the videos cannot be read, or some are mislabelled; 2 the
question is wrong.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from trainers.commands.data.inspect_video import Job, VideoFacts, content_hash, inspect_video
from trainers.commands.data.labels_in_paths import class_in_path
from trainers.commands.data.listing import DataError, all_videos
from trainers.commands.data.progress import Progress, key_of
from trainers.commands.data.verify_report import Verified, write_report
from trainers.commands.data.watched_pool import Failure, watched_map
from video_datasets.annotations import AnnotationError, read_annotations, read_class_names
from video_datasets.decoders import DECODER_NAMES
from video_datasets.decoding import VideoReadError
from video_datasets.machine import available_cores
from video_datasets.video_files import VIDEO_SUFFIXES, VideoFiles, VideoFilesError, open_video_files

NUM_SAMPLES = 24


@dataclass(frozen=True)
class ListToVerify:
    """One list with its videos and, where known, its classes."""

    name: str
    root: str
    list_path: Path | None  # None: every video below the root
    class_names_path: Path | None


@dataclass(frozen=True)
class Options:
    """How to look."""

    full: bool = False
    num_frames: int = 16
    decoder: str = "auto"
    workers: int = field(default_factory=available_cores)
    time_limit_s: float = 60.0
    max_bad_share: float = 0.01


@dataclass
class Entry:
    """A video of a list: where it is, and its class by name (None without a list)."""

    lists: list[str]
    root: str
    path: str
    class_name: str | None
    class_names: list[str]
    source: Any = None
    missing: str | None = None


def read_entries(lists: list[ListToVerify]) -> list[Entry]:
    """Return every video of the lists once, and find its file.

    Raises:
        AnnotationError, VideoFilesError: where a list or a root is wrong.
    """
    roots: dict[str, VideoFiles] = {}
    entries: dict[tuple[str, str, str | None], Entry] = {}
    for item in lists:
        names = read_class_names(item.class_names_path) if item.class_names_path is not None else []
        records = [] if item.list_path is None else read_annotations(item.list_path, len(names) or None)
        if item.root not in roots:
            roots[item.root] = open_video_files(item.root)
        files = roots[item.root]
        if item.list_path is None:
            listed = [(path, None) for path in all_videos(files)]
        else:
            listed = [(r.path, names[r.label] if names else str(r.label)) for r in records]
            files.prepare(path for path, _ in listed)
        for path, class_name in tqdm(listed, desc=f"find {item.name}", unit="video", disable=None, leave=False):
            key = (item.root, path, class_name)
            if key in entries:
                entries[key].lists.append(item.name)
                continue
            entry = entries[key] = Entry([item.name], item.root, path, class_name, names)
            try:
                entry.source = files.find(path)
            except VideoReadError as error:
                entry.missing = error.reason
    return list(entries.values())


def verify(lists: list[ListToVerify], output: Path, options: Options, again: bool = False) -> list[Verified]:
    """Look at every video of the lists, and write the report.

    Args:
        again: forget what an earlier start found.

    Raises:
        AnnotationError, VideoFilesError: where a list or a root is wrong.
        DataError: there is nothing to look at.
    """
    entries = read_entries(lists)
    if not entries:
        raise DataError(f"{lists[0].root}: no videos ({', '.join(sorted(VIDEO_SUFFIXES))})")
    samples = set(np.random.default_rng(0).permutation(len(entries))[:NUM_SAMPLES].tolist())
    way = "full" if options.full else options.decoder
    with Progress(output, again) as progress:
        jobs: dict[str, Job] = {}
        keys: list[str | None] = []
        for number, entry in enumerate(entries):
            key = None if entry.missing is not None else key_of(entry.source, way, options.num_frames)
            keys.append(key)
            if key is not None and key not in progress.known and key not in jobs:
                jobs[key] = Job(key, entry.source, options.full, options.num_frames, number in samples, options.decoder)
        with tqdm(total=len(jobs), desc="verify", unit="video", disable=None) as bar:
            for job, result in watched_map(inspect_video, jobs.values(), options.workers, options.time_limit_s):
                if isinstance(result, Failure):
                    facts = VideoFacts()
                    facts.add("error", "hangs or crashes", result.reason)
                    result = asdict(facts)
                progress.add(job.key, result)
                bar.update()
    verified = [_judge(entry, progress.known.get(key)) for entry, key in zip(entries, keys, strict=True)]
    _compare_contents(verified, {id(item): entry.source for item, entry in zip(verified, entries, strict=True)})
    title = ", ".join(dict.fromkeys(item.name for item in lists))
    write_report(output, title, verified, options.full, options.max_bad_share, sorted(samples))
    return verified


def is_safe(verified: list[Verified], max_bad_share: float) -> bool:
    """Whether training may start: few enough unreadable videos, none mislabelled."""
    bad = sum(item.is_bad for item in verified)
    return bad <= max_bad_share * len(verified) and not any(item.is_mislabelled for item in verified)


def _judge(entry: Entry, facts: dict[str, Any] | None) -> Verified:
    """Put together what is known of an entry."""
    found = VideoFacts(**facts) if facts is not None else VideoFacts()
    found.findings = [tuple(finding) for finding in found.findings]
    if entry.missing is not None:
        found.add("error", "missing", entry.missing)
    elif entry.class_name is not None:
        other = class_in_path(str(entry.source), entry.class_names)
        if other is not None and other != entry.class_name:
            found.add("warning", "mislabelled", f"listed as {entry.class_name!r}, its path says {other!r}")
    return Verified(entry.root, entry.path, entry.class_name, entry.lists, found)


def _compare_contents(verified: list[Verified], sources: dict[int, Any]) -> None:
    """Note videos of a root with one content: a repetition under the same class, a contradiction under another one.

    Digests are of size, beginning and end; where they agree the whole files are compared.
    """
    alike: dict[tuple[str, str], list[Verified]] = {}
    whole: dict[str, str] = {}
    for item in verified:
        if not item.facts.digest or item.is_bad:
            continue
        group = alike.setdefault((item.root, item.facts.digest), [])
        other = next((o for o in group if o.path == item.path or _same(sources[id(o)], sources[id(item)], whole)), None)
        if other is None:
            group.append(item)
            continue
        if other.path == item.path:
            continue
        if item.class_name == other.class_name:
            item.facts.add("note", "repeated", f"the same content as {other.path}")
        else:
            text = f"the same content as {other.path}, which is listed as {other.class_name!r}"
            item.facts.add("warning", "mislabelled", text)


def _same(first: Any, second: Any, whole: dict[str, str]) -> bool:
    """Whether two sources have one content; `whole` keeps the hashes of those read."""
    try:
        for source in (first, second):
            if str(source) not in whole:
                whole[str(source)] = content_hash(source)
    except OSError:  # gone since it was looked at
        return False
    return whole[str(first)] == whole[str(second)]


def lists_of_config(name: str, overrides: list[str]) -> tuple[list[ListToVerify], int, float]:
    """Return the lists of a data configuration, and its num_frames and data.max_bad_share.

    Raises:
        DataError: the configuration does not compose.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from trainers.config.compose import compose_config
    from trainers.config.lists import list_entries
    from trainers.config.settings import PROTOCOLS, Part

    protocol = next((protocol for protocol in PROTOCOLS if name.startswith(f"{protocol}_")), None)
    if protocol is None:
        raise DataError(f"--data {name}: must begin with one of {', '.join(PROTOCOLS)}")
    try:
        settings = compose_config(protocol, [f"data={name}", "output=unused", *overrides])
        entries = [entry for part in get_args(Part) for entry in list_entries(settings, part)]
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise DataError(f"--data {name}: {' '.join(str(error).split())}") from error
    lists = [ListToVerify(entry.list_name, entry.root, entry.list_path, entry.class_names_path) for entry in entries]
    return list(dict.fromkeys(lists)), settings.num_frames, settings.data.max_bad_share


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data configuration; key=value arguments go to it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="with --data")
    parser.add_argument("--list", type=Path, nargs="+", default=[], help="annotation lists; with --videos")
    parser.add_argument("--videos", help="folder or .tar of the videos; without --list every video in it")
    parser.add_argument("--class-names", type=Path, help="class names of the lists: labels are compared with paths")
    parser.add_argument("--output", type=Path, help="folder of the report (runs/verify/<name>)")
    parser.add_argument("--full", action="store_true", help="decode every frame in order, compare with the claim")
    parser.add_argument("--num-frames", type=int, help="frames of a view (16, or the configuration's)")
    parser.add_argument("--decoder", default="auto", choices=DECODER_NAMES, help="of the quick way")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: %(default)s)")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds a video (default: %(default)s)")
    parser.add_argument("--max-bad-share", type=float, help="share of unreadable videos that is safe (0.01)")
    parser.add_argument("--again", action="store_true", help="forget what an earlier start found")
    parser.add_argument("--dry-run", action="store_true", help="say what would be looked at, and stop")
    args = parser.parse_args(argv)
    num_frames, max_bad_share = 16, 0.01
    try:
        if args.data is not None:
            lists, num_frames, max_bad_share = lists_of_config(args.data, args.overrides)
            name = args.data
        elif args.videos is not None and not args.overrides:
            lists = [ListToVerify(str(path), args.videos, path, args.class_names) for path in args.list]
            lists = lists or [ListToVerify(args.videos, args.videos, None, None)]
            name = "_".join(path.stem for path in args.list) or Path(args.videos).resolve().stem
        else:
            parser.error("give --data NAME, or --videos ROOT with or without --list FILE")
        options = Options(
            full=args.full,
            num_frames=args.num_frames or num_frames,
            decoder=args.decoder,
            workers=max(1, args.workers),
            time_limit_s=args.time_limit,
            max_bad_share=max_bad_share if args.max_bad_share is None else args.max_bad_share,
        )
        output = args.output or Path("runs/verify") / name
        if args.dry_run:
            entries = read_entries(lists)
            missing = sum(entry.missing is not None for entry in entries)
            print(f"{len(entries):,} videos of {len(lists)} lists, {missing:,} of them missing; report: {output}")
            return 0
        verified = verify(lists, output, options, args.again)
    except (DataError, AnnotationError, VideoFilesError, OSError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    safe = is_safe(verified, options.max_bad_share)
    print((output / "summary.md").read_text(encoding="utf-8").split("\n## ")[0].strip())
    print(f"\nreport: {output / 'summary.html'}; exit status {0 if safe else 1}")
    return 0 if safe else 1
