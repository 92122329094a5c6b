"""The command-line tools: one module each, run as `tc-clip NAME` or `python scripts/NAME.py`."""
