#!/usr/bin/env python3
"""The command `tc-clip ablate` (see `trainers/commands/ablate.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("ablate")
