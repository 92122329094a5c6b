"""The processes of a run: start, sums, stop signals, monitoring, one run per output folder."""
