"""Help of the command line, and errors of one line with exit status 2.

Translates Hydra's messages. Imports nothing heavy.
"""

import getpass
import os
import re
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from trainers.config.keys import did_you_mean, keys_of
from trainers.config.published import PROTOCOL, translate
from trainers.config.secrets import hide_secrets
from trainers.config.settings import PROTOCOLS, Settings
from trainers.errors import ConfigError, ErrorOnAnotherRank, RunInterrupted, user_error_types
from trainers.paths import IS_INSTALLED, PROGRAM

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

USER_ERROR = 2
REQUEUE = 75  # EX_TEMPFAIL: stopped by a signal and saved; started again, the run resumes
# Read before this process sets the variable for Hydra.
_NO_MEMORY = re.compile("can't allocate memory|not enough memory|Cannot allocate memory|calculation overflowed")
MAX_ERROR = 1500  # characters of an error line
WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"

HELP = """\
usage: {program} -cn PROTOCOL data=DATA output=FOLDER [key=value ...]
       torchrun --nproc_per_node=GPUS {script} -cn PROTOCOL data=DATA output=FOLDER [key=value ...]

protocols (-cn; without it {default})
  {protocols}
data, by protocol
  {data}
trainers (trainer=)
  {trainers}

Often used: epochs lr batch_size total_batch_size num_workers num_frames seed, shot (few_shot), base (base2novel),
resume=FILE to start from weights, eval=val or eval=test to evaluate them, wise_ft, num_clip, num_crop, dry_run=true.
configs/base.yaml explains every key. `{program} -cn PROTOCOL data=DATA --cfg job` prints the whole configuration.
"""


class SweepError(Exception):
    """A job of a sweep has failed, and has printed why; the message is its name."""


@contextmanager
def composition_errors(configs: Path) -> Iterator[None]:
    """Around Hydra's main: print `--help`, and turn errors of composing the configuration into one line.

    Args:
        configs: folder of the configuration files.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.stdout.write(help_text(configs))
        sys.exit(0)
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        prepare_process()
        with _early_stops(), _hydra_raises():
            yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        _exit_with(describe_composition_error(error, sys.argv[1:], configs), WANTS_TRACEBACK)
    except SweepError as error:
        _exit_with(
            f"the job {error} of the sweep has failed (see above); started again, the others are not repeated", False
        )
    except Exception as error:
        # Some errors of Hydra have a class of its grammar's library or of Python.
        if _is_raised_in(error, ("hydra", "antlr4", "omegaconf", "yaml")):
            _exit_with(describe_composition_error(error, sys.argv[1:], configs), WANTS_TRACEBACK)
        raise


def prepare_process() -> None:
    """Let this process run anywhere: on terminals without Unicode, and under a user id without a name or a home.

    Text that standard output cannot show is escaped there. Libraries ask for the user's name to find their folders.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.gettempdir()


def translate_published_keys() -> None:
    """Replace keys of the published code among this process's arguments, and print a line for each.

    Raises:
        ConfigError: for a key that means something else here.
    """
    sys.argv[1:], notes = translate(sys.argv[1:])
    if int(os.environ.get("RANK", 0)) == 0:
        sys.stderr.writelines(f"note: {hide_secrets(note)}\n" for note in notes)


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Make Hydra raise errors instead of printing them in many lines."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _early_stops() -> Iterator[None]:
    """Exit at once, with the status that requests a restart, on a stop signal before the run handles signals.

    Imports take seconds. With several processes this does nothing: torchrun or its wrapper decides when they exit.
    """
    stops = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        stops = []
    before = {number: signal.getsignal(number) for number in stops}
    before = {number: handler for number, handler in before.items() if handler is signal.SIG_DFL}  # keep SIG_IGN
    for number in before:
        signal.signal(number, _exit_early)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_early(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{signal.Signals(number).name}: stopped before the training began\n".encode())
    os._exit(_requeue_status())  # an exception could be raised inside an import, and be swallowed


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """Around a run: turn errors that the user can fix into one line; all others keep their traceback."""
    full = debug or WANTS_TRACEBACK
    prepare_process()
    try:
        yield
    except ErrorOnAnotherRank:
        sys.exit(USER_ERROR)
    except RunInterrupted:
        sys.exit(_requeue_status())
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if isinstance(error, ConfigError) or isinstance(error, user_error_types()):
            _exit_with(" ".join(str(error).split()), full)
        if _lost_another_process(error):
            _exit_with(
                "lost the connection to another process of the run, which has failed and reports the cause", full
            )
        if type(error).__name__ == "OutOfMemoryError":
            advice = "not even one video fits: set trainer.checkpointing=true, or lower num_frames"
            _exit_with(f"out of GPU memory: {advice}: {str(error).splitlines()[0]}", full)
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            advice = "lower batch_size, num_frames or num_workers, or the sizes of the model"
            _exit_with(f"out of memory: {advice}: {next(iter(str(error).splitlines()), type(error).__name__)}", full)
        raise


def help_text(configs: Path) -> str:
    """Return what `--help` prints."""
    data = config_names(configs, "data")
    by_protocol = [" ".join(name for name in data if name.startswith(f"{protocol}_")) for protocol in PROTOCOLS]
    return HELP.format(
        program=PROGRAM,
        script="-m trainers.commands.train" if IS_INSTALLED else "main.py",
        protocols=" ".join(PROTOCOLS),
        default=PROTOCOL,
        data="\n  ".join(line for line in by_protocol if line),
        trainers=" ".join(config_names(configs, "trainer")),
    )


def config_names(configs: Path, group: str) -> list[str]:
    """Return the options of a configuration group, those in `configs/` of the working folder among them."""
    return sorted({path.stem for folder in (configs, Path("configs")) for path in (folder / group).glob("*.yaml")})


def describe_composition_error(error: Exception, arguments: list[str], configs: Path) -> str:
    """Return one line: what is wrong with a command line, and what would be right."""
    message = " ".join(str(error).split())
    chosen = _config_name(arguments)
    if chosen is not None and "Cannot find primary config" in message:
        return f"-cn {chosen}: no such protocol{did_you_mean(chosen, PROTOCOLS)}; there are: {', '.join(PROTOCOLS)}"
    if "override_grammar" in message:
        return _describe_unreadable(arguments, message.split(" See https://")[0])
    if "requires --multirun" in message:
        return _describe_unreadable([argument for argument in arguments if "," in argument], message)
    if found := re.search(r"Could not override '([^']+)'|[Kk]ey '([^']+)' is not in struct", message):
        key = found[1] or found[2]
        return f"unknown key {key}{_suggest_key(key)}"
    if found := re.search(r"Could not find '([\w.-]+)/([\w.-]+)'", message):
        group, name = found.groups()
        names = config_names(configs, group)
        protocol = chosen if group == "data" else None
        shown = [option for option in names if protocol is None or option.startswith(f"{protocol}_")] or names
        return f"{group}={name}: no such choice{did_you_mean(name, shown)}; there are: {', '.join(shown)}"
    if found := re.search(r"You must specify '(\w+)'", message):
        chosen = chosen or PROTOCOL
        names = [name for name in config_names(configs, found[1]) if name.startswith(f"{chosen}_")]
        others = "" if chosen != PROTOCOL else f" (other protocols: {PROGRAM} --help)"
        return f"{found[1]}= is missing; -cn {chosen} goes with: {', '.join(names)}{others}"
    return message


def _describe_unreadable(arguments: list[str], message: str) -> str:
    """Return the first argument whose value Hydra cannot read, in the form that it can read."""
    for argument in arguments:
        if "=" in argument and not argument.startswith("-") and _value_of(argument) is None:
            form = _quoted_form(argument)
            advice = f"give it in both kinds of quotes: {form}" if form else "the form is key=value"
            return f"cannot read {argument} (special letters in its value): {advice}"
    return f"cannot read the command line: {message} (key=value; quote values with spaces, commas or brackets)"


def _value_of(argument: str) -> Any:
    """Return the value of an argument as Hydra reads it; None if it cannot, or reads several values."""
    override = read_override(argument)
    return None if override is None or override.is_sweep_override() else override.value()


def read_override(argument: str) -> "Override | None":
    """Return an argument as Hydra reads it; None if it cannot."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        return OverridesParser.create().parse_override(argument)
    except Exception as error:
        if _is_raised_in(error, ("hydra", "antlr4", "omegaconf")):
            return None
        raise


def _quoted_form(argument: str) -> str | None:
    """Return `'key="value"'` as a user types it in a shell, if Hydra reads the value from it."""
    key, _, value = argument.partition("=")
    value = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    # Hydra's escapes: quotes, and backslashes before quotes or at the end.
    escaped = re.sub(r'(\\*)"', lambda found: found[1] * 2 + '\\"', value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    form = f'{key}="{escaped}{chr(92) * trailing}"'
    return shlex.quote(form) if _value_of(form) == value else None


def _is_raised_in(error: Exception, packages: tuple[str, ...]) -> bool:
    """Return whether an error comes from the code of one of these packages."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    module = type(error).__module__ if place is None else str(place.tb_frame.f_globals.get("__name__", ""))
    return module.split(".")[0] in packages or type(error).__module__.split(".")[0] in packages


def _config_name(arguments: list[str]) -> str | None:
    """Return the value of -cn or --config-name."""
    for index, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in ("-cn", "--config-name"):
            return value or next(iter(arguments[index + 1 :]), None)
        if argument.startswith("-cn") and not value:
            return argument[3:]
    return None


def _suggest_key(wrong: str) -> str:
    """Return the suggestion for a mistyped key, or for one without its group (`mixup=0` for `aug.mixup=0`)."""
    keys = keys_of(Settings)
    whole = [key for key in keys if key.endswith(f".{wrong}")]
    if whole:
        return f"; did you mean {' or '.join(whole)}?"
    return did_you_mean(wrong, [*keys, "data", "trainer", "aug", "optimizer", "logging"])


def _requeue_status() -> int:
    """Return the exit status of a run that a signal has stopped.

    torchrun treats every status but 0 as a failure, restarts the processes, and returns its own status. Its wrapper
    scripts/torchrun.sh therefore names a file that receives this status.
    """
    note = os.environ.get("RUN_EXIT_FILE")
    if not note:
        return REQUEUE
    Path(note).write_text(f"{REQUEUE}\n", encoding="utf-8")
    return 0


def _lost_another_process(error: Exception) -> bool:
    """Return whether an error of a reduction only reports that another process has ended."""
    gone = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    return isinstance(error, RuntimeError) and _is_connected() and any(words in str(error) for words in gone)


def _is_connected() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _exit_with(message: str, full: bool) -> None:
    """Print one line, after the traceback if `full`, and exit. To be called while the error is handled."""
    if full:
        traceback.print_exc()
    message = _printable(hide_secrets(message))
    rank = int(os.environ.get("RANK", 0))
    # Before the processes are connected, all of them have the same error: the first one prints it.
    if rank == 0 or _is_connected():
        sys.stderr.write(f"error: {message}\n" if rank == 0 else f"error (process {rank}): {message}\n")
        sys.stderr.flush()
    sys.exit(USER_ERROR)


def _printable(message: str) -> str:
    """Return a message without control characters, which could act on the terminal, and of a readable length."""
    text = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in message
    )
    return text if len(text) <= MAX_ERROR else f"{text[: MAX_ERROR * 2 // 3]} ... {text[-MAX_ERROR // 4 :]}"
