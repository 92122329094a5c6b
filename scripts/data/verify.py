#!/usr/bin/env python3
"""The command `tc-clip data verify` (see `trainers/commands/data/verify.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("data verify")
