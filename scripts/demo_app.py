#!/usr/bin/env python3
"""The command `tc-clip demo` (see `trainers/commands/demo_app.py`)."""

from trainers.commands.main import run

if __name__ == "__main__":
    run("demo")
