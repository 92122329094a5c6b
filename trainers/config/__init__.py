"""Settings: typed values, their checks, the command line, secrets."""
