#!/usr/bin/env python3
"""The command `tc-clip data make_splits` (see `trainers/commands/data/make_splits.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("data make_splits")
