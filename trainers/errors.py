"""Errors that the user can fix: they end a run with one line and exit status 2, without a traceback."""

import sys


class ConfigError(ValueError):
    """The configuration is wrong; the message names the key and what would be right."""


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or continuing from it would not give the run that the configuration describes."""


class TrainingError(RuntimeError):
    """Training cannot continue, for example because the loss is not finite."""


class ErrorOnAnotherRank(RuntimeError):  # noqa: N818 (a request to exit quietly: the rank that failed reports the error)
    """Another process of the run has failed and reports the cause; this one exits silently."""


class LostProcessError(RuntimeError):
    """Another process of the run is gone, or the network to it; the message names it and its last step."""


class RunInterrupted(Exception):  # noqa: N818 (nothing is wrong: the run has been asked to stop, and saved)
    """The run was asked to stop by a signal, has saved its state, and resumes when started again."""


def user_error_types() -> tuple[type[Exception], ...]:
    """Return the classes of error that end in one line.

    Imports nothing: an error of a module that was never imported cannot have been raised, and importing again what has
    failed would hide the cause.
    """
    found = [getattr(sys.modules.get(module), name, None) for module, names in _OF_PACKAGES.items() for name in names]
    return (ConfigError, CheckpointError, TrainingError, LostProcessError, *filter(None, found))


_OF_PACKAGES = {
    "tc_clip.weights.files": ("WeightsError",),
    "video_datasets.annotations": ("AnnotationError",),
    "video_datasets.decoding": ("VideoReadError",),
    "video_datasets.loaders": ("BadVideoError",),
    "video_datasets.video_files": ("VideoFilesError",),
    "video_datasets.workers": ("VideoTimeoutError", "VideoWorkerError"),
}
