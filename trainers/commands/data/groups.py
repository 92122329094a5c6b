"""Splits that never divide what belongs together: the clips of one recording, the segments and copies of one file."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from trainers.commands.data.listing import DataError
from video_datasets.annotations import VideoRecord
from video_datasets.segments import split_name


def groups_of(paths: Iterable[str], rule: str | None) -> dict[str, str]:
    """Return the group of every video by a rule; segments of one file are a group in any case.

    Args:
        paths: the videos, as lists name them.
        rule: `folder`, or a regular expression that is searched in the name without folders and suffix: what its
            first parenthesis finds (or all that it finds) is the group. None: the file.

    Raises:
        DataError: the expression is wrong, or finds nothing in a name.
    """
    try:
        pattern = re.compile(rule) if rule not in (None, "folder") else None
    except re.error as error:
        raise DataError(f"--group {rule}: is no regular expression: {error}") from error
    groups = {}
    for name in paths:
        path = split_name(name)[0]
        if rule == "folder":
            groups[name] = str(PurePosixPath(path).parent)
        elif pattern is not None:
            found = pattern.search(PurePosixPath(path).stem)
            if found is None:
                raise DataError(f"--group {rule}: finds nothing in {path!r}")
            groups[name] = found[1 if pattern.groups else 0] or ""
        else:
            groups[name] = path
    return groups


def joined(groups: Mapping[str, str], together: Iterable[Sequence[str]]) -> dict[str, str]:
    """Return the groups after those of some videos have become one."""
    parent = {group: group for group in groups.values()}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    for first, *others in together:
        for other in others:
            parent[root(groups[other])] = root(groups[first])
    return {name: root(group) for name, group in groups.items()}


def split_records(
    records: list[VideoRecord],
    classes: list[str],
    seed: tuple[int, ...],
    val_share: float,
    held: frozenset[str] | None,
    groups: Mapping[str, str],
) -> tuple[list[VideoRecord], list[VideoRecord]]:
    """Split every class into training and validation, at least one video each.

    Args:
        seed: of the draw.
        val_share: share of each class that is drawn for validation.
        held: paths for validation; None: they are drawn.
        groups: group of a video by its path; those without are alone.

    Raises:
        DataError: a class cannot be on both sides, or `held` divides a group.
    """
    if held is None and len(set(groups.values())) < len(groups):
        held = _drawn_groups(records, classes, seed, val_share, groups)
    train: list[VideoRecord] = []
    val: list[VideoRecord] = []
    for label, name in enumerate(classes):
        videos = [record for record in records if record.label == label]
        if held is None:
            num_val = min(max(1, round(val_share * len(videos))), len(videos) - 1)
            order = np.random.default_rng([*seed, label]).permutation(len(videos))
            kept = frozenset(videos[index].path for index in order[:num_val])
        else:
            kept = held
        of_val = [video for video in videos if video.path in kept]
        if not 0 < len(of_val) < len(videos):
            num_groups = len({groups.get(video.path, video.path) for video in videos})
            cut = f", and they are of {num_groups} groups" if num_groups < len(videos) else ""
            raise DataError(
                f"the class {name!r} has {len(videos) - len(of_val)} videos for training and {len(of_val)} for "
                f"validation; it needs one of each{cut}"
            )
        train += [video for video in videos if video.path not in kept]
        val += of_val
    return train, val


def drawn_several(
    records: Sequence[VideoRecord], seed: tuple[int, ...], val_share: float, groups: Mapping[str, str]
) -> frozenset[str]:
    """Draw the paths for validation of videos with any number of classes; groups stay together.

    From the rarest class to the most frequent, its groups are drawn until it has its share; what is left of them is for
    training. A class with a single group is in training.
    """
    members: dict[str, list[VideoRecord]] = {}
    for record in records:
        members.setdefault(groups.get(record.path, record.path), []).append(record)
    sizes = {group: Counter(label for r in of_group for label in r.labels) for group, of_group in members.items()}
    total = Counter(label for record in records for label in record.labels)
    order = [sorted(members)[index] for index in np.random.default_rng(seed).permutation(len(members))]
    taken: Counter[int] = Counter()
    decided: set[str] = set()
    chosen: set[str] = set()

    def take_if(group: str, label: int, most: int) -> None:
        leaves_some = all(taken[other] + count < total[other] for other, count in sizes[group].items())
        if leaves_some and taken[label] + sizes[group][label] <= most:
            chosen.add(group)
            taken.update(sizes[group])

    for label in sorted(total, key=lambda label: (total[label], label)):
        for group in order:
            if label in sizes[group] and group not in decided:
                decided.add(group)
                take_if(group, label, max(1, round(val_share * total[label])))
        if not taken[label]:  # all of its groups are larger than its share
            for group in sorted(order, key=lambda group: sizes[group].total()):
                if label in sizes[group] and not taken[label]:
                    take_if(group, label, total[label] - 1)
    return frozenset(record.path for group in chosen for record in members[group])


def divided(groups: Mapping[str, str], held: frozenset[str]) -> list[tuple[str, str]]:
    """Return a video of training and one of validation of each group that a split divides."""
    of_val = {groups[name]: name for name in groups if name in held}
    found = {groups[name]: name for name in groups if name not in held and groups[name] in of_val}
    return [(name, of_val[group]) for group, name in found.items()]


def _drawn_groups(
    records: Sequence[VideoRecord],
    classes: Sequence[str],
    seed: tuple[int, ...],
    val_share: float,
    groups: Mapping[str, str],
) -> frozenset[str]:
    """Draw groups for validation: about the share of each class, and neither all nor none of any if possible."""
    members: dict[str, list[VideoRecord]] = {}
    for record in records:
        members.setdefault(groups.get(record.path, record.path), []).append(record)
    total = Counter(record.label for record in records)
    wanted = {label: max(1, round(val_share * count)) for label, count in total.items()}
    taken: Counter[int] = Counter()
    sizes = {group: Counter(record.label for record in of_group) for group, of_group in members.items()}
    order = [sorted(members)[index] for index in np.random.default_rng([*seed, len(classes)]).permutation(len(members))]
    chosen: set[str] = set()

    def can_take(group: str, limit: Mapping[int, int]) -> bool:
        size = sizes[group]
        return group not in chosen and all(
            taken[label] + count <= limit[label] and taken[label] + count < total[label]
            for label, count in size.items()
        )

    def take(group: str) -> None:
        chosen.add(group)
        taken.update(sizes[group])

    for group in order:
        if can_take(group, wanted):
            take(group)
    for label in sorted(total, key=lambda label: total[label]):  # a class whose groups are all larger than its share
        if not taken[label]:
            fitting = [group for group in order if label in sizes[group] and can_take(group, total)]
            if fitting:
                take(min(fitting, key=lambda group: sizes[group].total()))
    return frozenset(record.path for group in chosen for record in members[group])
