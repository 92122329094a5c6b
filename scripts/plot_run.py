#!/usr/bin/env python3
"""The command `tc-clip plot-run` (see `trainers/commands/plot_run.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("plot-run")
