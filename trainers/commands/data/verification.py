"""Checks every video of a list, a folder or a tar before training: exists, decodes, agrees with its list."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from trainers.commands.data.inspect_video import Job, VideoFacts, content_hash, inspect_video
from trainers.commands.data.labels_in_paths import class_in_path
from trainers.commands.data.listing import DataError, report_left_out
from trainers.commands.data.progress import Progress, key_of
from trainers.commands.data.verify_report import Verified, write_report
from trainers.commands.data.watched_pool import Failure, watched_map
from video_datasets.annotations import read_annotations, read_class_names
from video_datasets.decoding import VideoReadError
from video_datasets.machine import available_cores
from video_datasets.video_files import VIDEO_SUFFIXES, FoundSource, VideoFiles, open_video_files

NUM_SAMPLES = 24


@dataclass(frozen=True)
class ListToVerify:
    """One list with the root of its videos and, if known, the file of its class names."""

    name: str
    root: str
    list_path: Path | None  # None: every video below the root
    class_names_path: Path | None


@dataclass(frozen=True)
class Options:
    """How videos are checked.

    Attributes:
        full: decode every frame in order, besides the frames of one test view.
        num_frames: frames per view.
        decoder: decoder of the test view; one of `video_datasets.decoders.DECODER_NAMES`.
        workers: number of processes.
        time_limit_s: seconds per video.
        max_bad_share: share of unreadable videos that is still safe.
    """

    full: bool = False
    num_frames: int = 16
    decoder: str = "auto"
    workers: int = field(default_factory=available_cores)
    time_limit_s: float = 60.0
    max_bad_share: float = 0.01


@dataclass
class Entry:
    """A listed video: its class by name (None without a list), and its file or why there is none."""

    lists: list[str]
    root: str
    path: str
    class_name: str | None
    class_names: list[str]
    source: FoundSource | None = None
    missing: str | None = None


def read_entries(lists: list[ListToVerify]) -> list[Entry]:
    """Return every video of the lists once, with its file.

    Raises:
        AnnotationError, VideoFilesError: a list or a root is wrong.
    """
    roots: dict[str, VideoFiles] = {}
    entries: dict[tuple[str, str, str | None], Entry] = {}
    for item in lists:
        names = read_class_names(item.class_names_path) if item.class_names_path is not None else []
        records = [] if item.list_path is None else read_annotations(item.list_path, len(names) or None, True)
        if item.root not in roots:
            roots[item.root] = open_video_files(item.root)
        files = roots[item.root]
        listed: list[tuple[str, str | None]]
        if item.list_path is None:
            found = files.find_all()
            listed = [(path, None) for path in found.videos]
            report_left_out(item.root, found)
        else:
            listed = [(r.path, "; ".join(names[label] if names else str(label) for label in r.labels)) for r in records]
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
    """Check every video of the lists, and write the report.

    Args:
        lists: the lists.
        output: folder of the report.
        options: how to check.
        again: discard the results of an earlier run.

    Raises:
        AnnotationError, VideoFilesError: a list or a root is wrong.
        DataError: there are no videos.
    """
    entries = read_entries(lists)
    if not entries:
        raise DataError(f"{lists[0].root}: no videos ({', '.join(sorted(VIDEO_SUFFIXES))})")
    samples = set(np.random.default_rng(0).permutation(len(entries))[:NUM_SAMPLES].tolist())
    method = f"{options.decoder}, {'all frames' if options.full else 'a view'}, compared"
    with Progress(output, again) as progress:
        jobs: dict[str, Job] = {}
        keys: list[str] = []  # "" for a missing video
        for number, entry in enumerate(entries):
            key = "" if entry.source is None else key_of(entry.source, method, options.num_frames)
            keys.append(key)
            if entry.source is not None and key not in progress.known and key not in jobs:
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
    _compare_contents(verified, [entry.source for entry in entries])
    title = ", ".join(dict.fromkeys(item.name for item in lists))
    write_report(output, title, verified, options.full, options.max_bad_share, sorted(samples))
    return verified


def _judge(entry: Entry, facts: dict[str, Any] | None) -> Verified:
    """Combine what is known of an entry."""
    found = VideoFacts.from_dict(facts) if facts is not None else VideoFacts()
    if entry.missing is not None:
        found.add("error", "missing", entry.missing)
    elif entry.class_name is not None:
        other = class_in_path(str(entry.source), entry.class_names)
        if other is not None and other != entry.class_name:
            found.add("warning", "mislabelled", f"listed as {entry.class_name!r}, its path names {other!r}")
    return Verified(entry.root, entry.path, entry.class_name, entry.lists, found)


def _compare_contents(verified: list[Verified], sources: list[FoundSource | None]) -> None:
    """Add a finding to videos of a root with equal content: a note within a class, a warning across classes.

    Digests cover the size, the beginning and the end; if they agree, the whole files are compared.
    """
    groups: dict[tuple[str, str], list[tuple[Verified, FoundSource]]] = {}
    hashes: dict[str, str] = {}
    for item, source in zip(verified, sources, strict=True):
        if source is None or not item.facts.digest or item.is_bad:
            continue
        group = groups.setdefault((item.root, item.facts.digest), [])
        for other, other_source in group:
            if other.path == item.path or _same_content(other_source, source, hashes):
                break
        else:
            group.append((item, source))
            continue
        if other.path == item.path:
            continue
        if item.class_name == other.class_name:
            item.facts.add("note", "repeated", f"the same content as {other.path}")
        else:
            text = f"the same content as {other.path}, which is listed as {other.class_name!r}"
            item.facts.add("warning", "mislabelled", text)


def _same_content(first: FoundSource, second: FoundSource, hashes: dict[str, str]) -> bool:
    """Return whether two sources have equal content; `hashes` holds those of the sources read so far."""
    try:
        for source in (first, second):
            if str(source) not in hashes:
                hashes[str(source)] = content_hash(source)
    except OSError:  # deleted meanwhile
        return False
    return hashes[str(first)] == hashes[str(second)]
