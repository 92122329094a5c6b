#!/usr/bin/env python3
"""The command `tc-clip data import_splits` (see `trainers/commands/data/import_splits.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("data import_splits")
