"""Features of frames that are computed once and kept in a folder, in files of a bounded total size."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tc_clip.protocol import VideoBackbone
from tc_clip.weights.checksum import checksum_of
from trainers.errors import ConfigError
from trainers.inference.embed import MAX_BYTES, VideoFeatures, fingerprint_of, load_features, save_features
from trainers.inference.reading import framing_of
from trainers.precision import Precision
from video_datasets.decoding import VideoReadError
from video_datasets.segments import VideoSegment
from video_datasets.video_files import TarMember, VideoFiles

VIDEOS_OF_A_FILE = 1024  # an interrupted computation loses those of one file
_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")


@dataclass(frozen=True)
class FeatureStore:
    """A folder of feature files, as `tc-clip embed` writes them; a file's name is the checksum of all it depends on.

    Attributes:
        folder: where they are.
        max_bytes: of all files; the ones that were not used for the longest time are removed.
        note: is called with one line about a file that is of no use, or cannot be written.
    """

    folder: Path
    max_bytes: int
    note: Callable[[str], None]

    def frames_of(
        self,
        settings: Sequence[Any],
        paths: Sequence[str],
        files: VideoFiles,
        compute: Callable[[list[str], str], VideoFeatures],
    ) -> tuple[list[int], Tensor]:
        """Return the numbers of the videos that could be read, and their features (n, V, T, E).

        Args:
            settings: what the features depend on besides the videos, as `settings_of` returns it.
            paths: the videos of a list; `files` finds them.
            compute: returns the features, with frames, of some of the videos; its second argument is their fingerprint.

        Raises:
            ConfigError: if the features would need more than `MAX_BYTES`.
        """
        numbers: list[int] = []
        found: list[Tensor] = []
        used: set[str] = set()
        for first in range(0, len(paths), VIDEOS_OF_A_FILE):
            names = list(paths[first : first + VIDEOS_OF_A_FILE])
            key = checksum_of([list(settings), names, [_state_of(name, files) for name in names]])
            used.add(f"{key}.safetensors")
            features = self._of_part(key, names, compute, used)
            if features is None or features.frames is None:
                continue
            if (size := features.frames[0].nbytes * len(paths)) > MAX_BYTES:
                raise ConfigError(
                    f"the features of {len(paths)} videos need {size / 2**30:.0f} GiB, more than "
                    f"{MAX_BYTES / 2**30:.0f}; give fewer views, or a part of the list"
                )
            row_of = {name: row for row, name in enumerate(features.paths)}
            read = [number for number, name in enumerate(names) if name in row_of]
            numbers += [first + number for number in read]
            found.append(features.frames[[row_of[names[number]] for number in read]])
        return numbers, torch.cat(found) if found else torch.empty(0)

    def _of_part(
        self, key: str, names: list[str], compute: Callable[[list[str], str], VideoFeatures], used: set[str]
    ) -> VideoFeatures | None:
        """Return the kept features of some videos, after those that are missing have been computed and kept."""
        features = self._load(key, set(names))
        missing = names if features is None else [name for name in names if name not in set(features.paths)]
        if missing:
            new = compute(missing, key)
            if new.paths:
                features = new if features is None else _joined(features, new)
                self._save(key, features, used)
        return features

    def _load(self, key: str, names: set[str]) -> VideoFeatures | None:
        path = self.folder / f"{key}.safetensors"
        if not path.exists():
            return None
        try:
            features = load_features(path)
            if features.fingerprint != key or features.frames is None or not names.issuperset(features.paths):
                raise ConfigError(f"{path}: has other features than its name says")
            os.utime(path)
        except (ConfigError, OSError) as error:
            self.note(f"{error}: its features are computed again")
            return None
        return features

    def _save(self, key: str, features: VideoFeatures, used: set[str]) -> None:
        path = self.folder / f"{key}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_features(path, features)
            self._remove_oldest(used, path)
        except (ConfigError, OSError) as error:
            self.note(f"the features are not kept: {error}")

    def _remove_oldest(self, used: set[str], new: Path) -> None:
        """Remove files of other runs until all fit; if this run's own files alone do not, remove the new one."""
        kept = [(path, path.stat()) for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        total = sum(status.st_size for _, status in kept)
        for path, status in sorted(kept, key=lambda item: item[1].st_mtime_ns):
            if total > self.max_bytes and path.name not in used:
                path.unlink(missing_ok=True)
                total -= status.st_size
        if total > self.max_bytes:
            new.unlink()
            self.note(
                f"{self.folder}: more than {self.max_bytes / 2**30:g} GiB of features, those of a part are not kept"
            )


def settings_of(model: VideoBackbone, precision: Precision, num_clips: int, num_crops: int, decoder: str) -> list[Any]:
    """Return what the features of frames depend on besides the videos."""
    return [backbone_of(model), model.input_size, num_clips, num_crops, precision.name, precision.device.type, decoder]


def backbone_of(model: VideoBackbone) -> str:
    """Return a checksum of the weights, of the architecture and of how frames become input."""
    info = model.info()
    architecture = [model.name, info.get("options", {}), info.get("sizes", {}), framing_of(model)]
    return checksum_of([fingerprint_of(model), architecture])


def _joined(old: VideoFeatures, new: VideoFeatures) -> VideoFeatures:
    assert old.frames is not None and new.frames is not None
    return replace(
        old,
        paths=old.paths + new.paths,
        video=torch.cat((old.video, new.video)),
        frames=torch.cat((old.frames, new.frames)),
    )


def _state_of(listed: str, files: VideoFiles) -> list[int] | None:
    """Return size and time of a video's file, which change when it does; None if there is no such file."""
    try:
        source = files.find(listed)
        found = source.source if isinstance(source, VideoSegment) else source
        if isinstance(found, TarMember):
            return [found.size, found.offset, os.stat(found.archive).st_mtime_ns]
        status = os.stat(str(found))
    except (VideoReadError, OSError):
        return None
    return [status.st_size, status.st_mtime_ns]
