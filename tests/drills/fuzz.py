#!/usr/bin/env python3
"""Change settings, lists and checkpoints at random, and see that each is refused with one line or means what it says.

    python tests/drills/fuzz.py --minutes 20                     # all kinds in turn
    python tests/drills/fuzz.py --kinds settings --mutants 1000 --seed 3

A mutant is a function of the kind, the seed and its number, so `--kinds KIND --seed S --first N --mutants 1` repeats
one. It fails if it ends in anything but success or an error of one line, takes more than `LIMIT_S` seconds, or is
accepted although it must not be: a setting of another type, a list that reads otherwise than its lines, a checkpoint
whose weights changed. Exit status 1 if one fails. `tests/scripts/test_fuzz.py` runs the first mutants of each kind.
"""

import argparse
import contextlib
import copy
import io
import json
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import tc_clip
from trainers.checkpoint import read_newest, save_checkpoint
from trainers.config.command_line import USER_ERROR, one_line_errors
from trainers.config.keys import keys_of
from trainers.config.resolve import resolve
from trainers.config.settings import Settings
from trainers.continuing import compare_runs, fixed_facts, restore
from trainers.distributed.interrupts import Interrupts
from trainers.distributed.processes import distributed
from trainers.errors import ConfigError
from trainers.inference.inputs import find_videos, read_classes
from trainers.paths import CONFIGS
from trainers.prepare import prepare
from trainers.state import TrainingState
from video_datasets.annotations import VideoRecord, read_annotations, read_class_names
from video_datasets.video_files import open_video_files, write_tar_index

LIMIT_S = 20
MEMORY_BYTES = 6 << 30  # address space that a mutant can use beyond what the program has
OVERRIDES = (
    "data=few_shot_shapes trainer=tc_clip_tiny shot=2 num_frames=4 input_size=32 trainer.options.patch_size=8 "
    "trainer.options.vision_width=64 trainer.options.vision_depth=2 trainer.options.text_width=64 "
    "trainer.options.text_depth=2 trainer.options.embed_dim=64 trainer.options.num_context_tokens=4 "
    "trainer.options.merge_rate=4 trainer.options.prompt_layers=[2] batch_size=2 total_batch_size=8 num_workers=0 "
    "device=cpu dry_run=true data.decoder=pyav logging.tensorboard=false"
)
NESTED: dict[str, Any] = {}
_inner = NESTED
for _ in range(40):
    _inner["a"] = {}
    _inner = _inner["a"]
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**30, -0.5, 0.3, 1e-300, 1e308, float("nan"), float("inf")),
    *(
        "",
        " ",
        "x",
        "1",
        "null",
        "???",
        "x" * 5000,
        "a\0b",
        "a\nb",
        "../../x",
        "/",
        ".",
        "é",
        "视频",
        "$$ {}",
        "{",
        "%s",
    ),
    *([], [1], [[]], ["x", None], [0.5] * 1000, {}, {"a": 1}, {1: 2}, NESTED),
)


@dataclass(frozen=True)
class Failure:
    """A mutant that was handled wrongly, and how."""

    kind: str
    number: int
    mutant: str
    reason: str


class _TooLong(BaseException):
    """Raised in a mutant that takes too long; no handler of errors catches it."""


def outcome_of(work: Callable[[], str | None]) -> str | None:
    """Run a mutant as the command line does; return None if it was handled, else what went wrong.

    Args:
        work: returns why an accepted mutant must not be accepted, or None.
    """

    def stop(*_: object) -> None:
        raise _TooLong

    wrong: str | None = None
    stderr = io.StringIO()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()), one_line_errors():
            wrong = work()
    except SystemExit as exit_:
        lines = stderr.getvalue().splitlines()
        if exit_.code != USER_ERROR or not lines or not lines[-1].startswith("error: "):
            wrong = f"exit status {exit_.code}: {stderr.getvalue()[-300:]}"
        elif len(lines[-1]) > 2000:
            wrong = f"an error of {len(lines[-1])} characters"
    except _TooLong:
        wrong = f"takes more than {LIMIT_S} s"
    except BaseException as error:  # whatever it is: the user would see a traceback
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = "" if place is None else f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
        wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{where}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return wrong


class Kind:
    """One kind of mutants.

    Args:
        folder: for its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mutant(self, rng: random.Random) -> tuple[str, Callable[[], str | None]]:
        """Return a mutant in words, and its work for `outcome_of`."""
        raise NotImplementedError


class SettingsKind(Kind):
    """A configuration with other values, as a dry run reads it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_lists(folder / "data" / "shapes")
        overrides = [*OVERRIDES.split(), f"data_root={folder}/data", f"output={folder}/run"]
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            values = OmegaConf.to_container(compose("few_shot", overrides=overrides), resolve=True)
        assert isinstance(values, dict)
        self.values: dict[str, Any] = {str(name): value for name, value in values.items()}
        self.places = list(_places(self.values, ()))
        self.declared = keys_of(Settings)

    def mutant(self, rng: random.Random) -> tuple[str, Callable[[], str | None]]:
        values = copy.deepcopy(self.values)
        place, value = rng.choice(self.places), copy.deepcopy(rng.choice(VALUES))
        holder: Any = values
        for name in place[:-1]:
            holder = holder[name]
        default = holder[place[-1]]
        holder[place[-1]] = value
        dotted = ".".join(map(str, place))
        return f"{dotted}={value!r:.80}", lambda: self._run(values, dotted, default, value)

    def _run(self, values: dict[str, Any], dotted: str, default: object, value: object) -> str | None:
        settings = resolve(OmegaConf.create(values))
        with Interrupts(verbose=False) as interrupts, distributed(settings.device, 1, interrupts) as ranks:
            prepare(settings, ranks, interrupts)
        if dotted not in self.declared and value is not None and default is not None:
            families = _family(default), _family(value)
            if families[0] != families[1] and families != ("float", "int"):
                return f"accepted, although {default!r:.40} is {families[0]}"
        return None


class ListsKind(Kind):
    """Changed bytes of annotation lists, class names and indexes of tars."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_lists(folder / "shapes")
        lines = [(f"{index:02d} a b.mp4", index % 3) for index in range(8)]
        self.originals = {
            "list.txt": "".join(f"{name} {label}\n" for name, label in lines).encode(),
            "list.json": json.dumps([{"filename": name, "label": [label]} for name, label in lines]).encode(),
            "names.csv": b'id,name\n0,one\n1,"two, three"\n2,four\n',
            "names.json": b'{"0": "one", "1": "two", "2": "four"}',
            "classes.txt": b"one\ntwo\nfour\n",
            "videos.tar.index": b"",
        }
        self.tar = folder / "videos.tar"
        make_tar(self.tar, folder)
        self.originals["videos.tar.index"] = write_tar_index(self.tar).read_bytes()

    def mutant(self, rng: random.Random) -> tuple[str, Callable[[], str | None]]:
        name = rng.choice(list(self.originals))
        content, words = change_bytes(self.originals[name], rng)
        return f"{name}: {words}", lambda: self._read(name, content)

    def _read(self, name: str, content: bytes) -> str | None:
        path = self.folder / name
        path.write_bytes(content)
        if name == "videos.tar.index":
            files = open_video_files(self.tar)
            sizes = {found: len(files.find(found).read()) for found in files.videos()}  # type: ignore[union-attr]
            scanned = {f"{index}.mp4": 100 + index for index in range(3)}
            return None if sizes == scanned else f"accepted: {str(sizes)[:200]}"
        if name == "classes.txt":
            read_classes([str(path)])
        elif name.startswith("names"):
            read_class_names(path)
        else:
            records = [(record.path, record.label) for record in read_annotations(path, num_classes=3)]
            if name == "list.txt":
                text = content.decode("utf-8-sig")
                parts = [line.strip().rsplit(maxsplit=1) for line in re.split(r"[\r\n]+", text) if line.strip()]
                if records != [(path, int(label)) for path, label in parts]:
                    return f"accepted as {records!r:.200}"
                find_videos([path])
        return None


class CheckpointsKind(Kind):
    """Changed bytes of checkpoints: refused, or the same weights."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        torch.manual_seed(0)
        sizes = {"image_size": 16, "patch_size": 8, "vision_width": 64, "vision_depth": 1, "text_width": 64}
        sizes |= {"text_depth": 1, "embed_dim": 32, "num_frames": 2}
        model = tc_clip.create_model("vifi_clip", class_names=["a", "b"], **sizes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        sum(parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
        optimizer.step()
        self.state = TrainingState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False))
        self.state.position.epoch, self.state.position.best = 1, {"epoch": 1, "top1": 50.0}
        self.weights = copy.deepcopy(model.state_dict())
        self.run = fixed_facts([VideoRecord("a.mp4", 0)], ["a", "b"])
        self.config = {"epochs": 3, "lr": 1e-3, "aug": {"gray": 0.2}}
        save_checkpoint(folder / "last.pth", {**self.state.content(True), "run": self.run, "config": self.config})
        self.original = (folder / "last.pth").read_bytes()
        self.content = torch.load(folder / "last.pth", weights_only=True)

    def mutant(self, rng: random.Random) -> tuple[str, Callable[[], str | None]]:
        path = self.folder / "last.pth"
        if rng.random() < 0.6:
            changed, words = change_bytes(self.original, rng)

            def write() -> None:
                path.write_bytes(changed)

            return words, lambda: self._load(path, write)
        content = copy.deepcopy(self.content)
        places = [place for place in _places(content, ()) if place[0] != "checksum"]
        place, value = rng.choice(places), copy.deepcopy(rng.choice(VALUES))
        holder: Any = content
        for name in place[:-1]:
            holder = holder[name]
        if isinstance(holder[place[-1]], torch.Tensor) and rng.random() < 0.7:
            tensor = holder[place[-1]]
            value = rng.choice(
                [tensor.to(torch.int64), tensor.double(), tensor[:1] if tensor.ndim else tensor[None], tensor + 1]
            )
        holder[place[-1]] = value
        with_checksum = rng.random() < 0.3
        if not with_checksum:
            content.pop("checksum", None)
        words = f"{'.'.join(map(str, place))} = {type(value).__name__} {str(value)[:30]!r}"

        def save() -> None:
            torch.save(content, path)

        return words + ("" if with_checksum else ", without checksum"), lambda: self._load(
            path, save, None if with_checksum else place
        )

    def _load(self, path: Path, write: Callable[[], None], edited: tuple[str | int, ...] | None = None) -> str | None:
        write()
        tried = (outcome_of(lambda: self._resume(path)), outcome_of(lambda: self._build(path, edited)))
        return next((reason for reason in tried if reason is not None), None)

    def _resume(self, path: Path) -> str | None:
        newest = read_newest(path)
        assert newest is not None
        compare_runs(path, newest[0], self.run, self.config)
        restore(self.state, newest[0], path)
        position = self.state.position
        best = position.best is None or isinstance(position.best, dict)
        return None if type(position.epoch) is int and position.epoch >= 0 and best else f"resumes at {position}"

    def _build(self, path: Path, edited: tuple[str | int, ...] | None) -> str | None:
        checkpoint = tc_clip.read_checkpoint(path)
        model = tc_clip.load_model(checkpoint, ["a", "b"])
        if edited is not None:  # a whole file that says something else: its values count, if their kinds are right
            stated = checkpoint.content["model"].get(edited[-1]) if edited[0] == "model" else None
            if isinstance(stated, torch.Tensor) and not stated.is_floating_point():
                return f"accepted, although {edited[-1]} has whole numbers"
            return None
        found = model.state_dict()
        different = [name for name, value in self.weights.items() if not torch.equal(found[name], value)]
        return f"accepted, although {different[0]} differs" if different else None


KINDS: Mapping[str, type[Kind]] = {"settings": SettingsKind, "lists": ListsKind, "checkpoints": CheckpointsKind}


def change_bytes(original: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change a file: flip bits, cut, repeat, exchange, insert what is special in text, nest or grow."""
    content = bytearray(original)
    position = rng.randrange(max(1, len(content)))
    how = rng.choice(["flip", "flip", "cut", "repeat", "drop", "insert", "insert", "lines", "nest", "grow", "encode"])
    if how == "flip":
        for _ in range(rng.choice([1, 1, 3, 20])):
            if content:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del content[position:]
    elif how == "repeat":
        end = position + rng.randrange(1, 40)
        content[position:position] = content[position:end] * rng.choice([1, 2, 50])
    elif how == "drop":
        del content[position : position + rng.randrange(1, 20)]
    elif how == "insert":
        special = [
            b"\0",
            b"\r",
            b"\n",
            b"\t",
            b" ",
            b"-",
            b'"',
            b",",
            b"{",
            b"[",
            b"\xff",
            b"\xe2\x80\xa8",
            b"../",
            b"/",
        ]
        content[position:position] = rng.choice([*special, b"1e5", b"NaN", b"1_0", "٣".encode(), b"9" * 5000])
    elif how == "lines":
        content = bytearray(bytes(content).replace(b"\n", rng.choice([b"\r", b"\r\n", b"\n\r", b"\x0b", b"\x85"])))
    elif how == "nest":
        content = bytearray(rng.choice([b"[", b'{"0":', b'[{"filename":']) * rng.choice([50, 5000, 200_000]))
    elif how == "grow":
        content[position:position] = rng.choice([b"9", b"x", b" ", b"\n"]) * 2_000_000
    else:
        text = bytes(content).decode("latin-1")
        content = bytearray(text.encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"])))
    return bytes(content), f"{how} at {position} of {len(original)}"


def make_lists(folder: Path) -> None:
    """Write the lists and class names of a data set `shapes`, and empty files as its videos."""
    for name in ("videos", "lists", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(8):
        (folder / "videos" / f"{index:02d}.mp4").write_bytes(b"")
    lines = "".join(f"{index:02d}.mp4 {index % 3}\n" for index in range(8))
    for name in ("train_few_shot_2", "val_few_shot"):
        (folder / "lists" / f"{name}.txt").write_text(lines)
    (folder / "labels" / "all.csv").write_text("id,name\n0,one\n1,two\n2,three\n")


def make_tar(path: Path, folder: Path) -> None:
    """Write a tar of three files of 100, 101 and 102 bytes."""
    import tarfile

    with tarfile.open(path, "w") as archive:
        for index in range(3):
            member = folder / f"{index}.mp4"
            member.write_bytes(bytes([index]) * (100 + index))
            archive.add(member, member.name)
            member.unlink()


def fuzz(kind: str, seed: int, first: int, count: int | None, seconds: float) -> tuple[int, list[Failure]]:
    """Run mutants of a kind, up to a number or a time; return how many ran, and those that failed."""
    failures: list[Failure] = []
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    end, number = time.monotonic() + seconds, first
    try:
        runner = KINDS[kind](folder)
        with limited_memory():
            while (count is None or number < first + count) and time.monotonic() < end:
                words, work = runner.mutant(random.Random(f"{kind} {seed} {number}"))
                reason = outcome_of(work)
                if reason is not None:
                    failures.append(Failure(kind, number, words, reason))
                number += 1
    finally:
        shutil.rmtree(folder)
    return number - first, failures


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Let this process use no more than `MEMORY_BYTES` more than now: a mutant cannot take the machine's memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _places(values: Any, prefix: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value and group of values."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for name, value in items:
        yield (*prefix, name)
        yield from _places(value, (*prefix, name))


def _family(value: object) -> str:
    return "text" if isinstance(value, str) else type(value).__name__


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--mutants", type=int, help="of each kind (default: as many as the time allows)")
    parser.add_argument("--minutes", type=float, default=20.0, help="for all kinds together")
    args = parser.parse_args(argv)
    if args.first < 0 or args.minutes <= 0:
        raise ConfigError("--first must be 0 or more, --minutes above 0")
    failed = False
    for kind in args.kinds:
        seconds = 60 * args.minutes / len(args.kinds)
        number, failures = fuzz(kind, args.seed, args.first, args.mutants, seconds)
        print(f"{kind}: {number} mutants, {len(failures)} failed", flush=True)
        for failure in failures:
            print(f"  {failure.number}: {failure.mutant}\n      {failure.reason}", flush=True)
        failed |= bool(failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
