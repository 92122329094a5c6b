#!/usr/bin/env python3
"""The command `tc-clip reproduce` (see `trainers/commands/reproduce.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("reproduce")
