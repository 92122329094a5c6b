#!/usr/bin/env python3
"""The command `tc-clip search` (see `trainers/commands/search.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("search")
