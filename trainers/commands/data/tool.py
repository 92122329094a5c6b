"""What the command-line tools for data share: errors as one line."""

import functools
import sys
from collections.abc import Callable

from trainers.commands.data.listing import DataError
from trainers.config.command_line import prepare_process
from video_datasets.annotations import AnnotationError
from video_datasets.video_files import VideoFilesError

Main = Callable[[list[str] | None], int]


def data_tool(name: str) -> Callable[[Main], Main]:
    """Decorate the `main` of a tool: an error that the user can fix is one line, and exit status 2; Ctrl-C is 130."""

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def wrapped(argv: list[str] | None = None) -> int:
            prepare_process()
            try:
                return main(argv)
            except (DataError, AnnotationError, VideoFilesError, OSError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                return 130

        return wrapped

    return decorate
