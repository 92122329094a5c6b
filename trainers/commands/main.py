"""`tc-clip COMMAND ...`: every command-line tool by its name. `trainers.commands.train` is `tc-clip-train`.

A tool is a module with `main(argv) -> int`; it is imported when it is run.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import tc_clip


class Command(NamedTuple):
    """The module of a command, and what the command does in one line."""

    module: str
    summary: str
    decodes: bool = False  # video decoders write to standard error what the command reports itself


COMMANDS = {
    "predict": Command("predict", "predict the actions in videos", decodes=True),
    "embed": Command("embed", "write the features of videos and texts to a file", decodes=True),
    "probe": Command("probe", "train heads on the features of a frozen model, with a grid at once", decodes=True),
    "search": Command("search", "rank videos by how well they match a text", decodes=True),
    "visualize": Command("visualize", "draw what a model attends to in a video", decodes=True),
    "demo": Command("demo_app", "a web page on this machine to try a model on videos", decodes=True),
    "serve": Command("serve", "predict videos over HTTP, for other programs", decodes=True),
    "report": Command("report", "write report.html about a finished run or evaluation", decodes=True),
    "export": Command("export", "export a model to torch.export, AOTInductor, ONNX or safetensors"),
    "convert": Command("convert_checkpoint", "convert a checkpoint to another layout"),
    "push": Command("push", "publish a checkpoint on the Hugging Face hub"),
    "results": Command("collect_results", "build the tables of the paper from finished runs"),
    "reproduce": Command("reproduce", "evaluate published checkpoints and compare with the published numbers"),
    "ablate": Command("ablate", "train and compare a list of variants"),
    "sweep-wise-ft": Command("sweep_wise_ft", "evaluate a range of WiSE-FT weights"),
    "plot-run": Command("plot_run", "draw the curves and confusion matrices of a run"),
    "make-shapes": Command("make_shapes", "make the embedded data set of moving shapes"),
    "data verify": Command("data.verify", "check that every video of a data set can be read"),
    "data new_dataset": Command("data.new_dataset", "turn your own videos into lists and configurations"),
    "data make_splits": Command("data.make_splits", "make the lists of the protocols from official annotations"),
    "data import_splits": Command("data.import_splits", "check and use lists that others have published"),
    "data transcode": Command("data.transcode", "re-encode videos so that they decode faster"),
    "data pack": Command("data.pack", "pack videos into tar archives"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; without one, list all commands. Return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(tc_clip.__version__)
        return 0
    num_words = 2 if arguments[0] == "data" else 1
    name = " ".join(arguments[:num_words])
    if name not in COMMANDS:
        tools = ", ".join(known.removeprefix("data ") for known in COMMANDS if known.startswith("data "))
        hint = f"tc-clip data goes with one of {tools}" if num_words == 2 else "tc-clip --help lists the commands"
        print(f"tc-clip: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    return run_command(name, arguments[num_words:])


def run(name: str) -> None:
    """Run a command with this process's arguments, and end the process with its exit status."""
    sys.exit(run_command(name, sys.argv[1:]))


def run_command(name: str, argv: Sequence[str]) -> int:
    """Run a command with arguments and return its exit status."""
    command = COMMANDS[name]
    module = importlib.import_module(f"trainers.commands.{command.module}")
    if command.decodes:
        from trainers.commands.shared import quiet_decoders

        quiet_decoders()
    return module.main(list(argv))


def overview() -> str:
    """Return the list of commands, one per line."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name.ljust(width)}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: tc-clip COMMAND ...",
            "",
            *lines,
            "",
            "tc-clip COMMAND --help describes a command. tc-clip-train trains and evaluates models.",
        ]
    )
