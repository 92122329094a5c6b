#!/usr/bin/env python3
"""The command `tc-clip visualize` (see `trainers/commands/visualize.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("visualize")
