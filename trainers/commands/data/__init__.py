"""The command-line tools for data sets: lists, checks, transcoding, packing."""
