#!/usr/bin/env python3
"""The command `tc-clip embed` (see `trainers/commands/embed.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("embed")
