#!/usr/bin/env python3
"""The command `tc-clip export` (see `trainers/commands/export.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("export")
