"""Serve a model over HTTP: POST /predict takes videos and replies as `tc-clip predict --json`.

    python scripts/serve.py --checkpoint runs/first/best.pth --port 8000
    curl -F files=@first.mp4 -F files=@second.mp4 -F top=3 http://127.0.0.1:8000/predict

Needs FastAPI, in the extra `web` (`pip install -r requirements-extra.txt`). Only this machine can ask, unless --host
and a token are given. Requests are limited in size, number and time, videos in length. GET /health says what is served,
and GET /openapi.json describes it. Uploads are deleted with the reply.
"""

import argparse
import contextlib
import os
import signal
import socket
from pathlib import Path

from trainers.commands.shared import (
    add_model_arguments,
    calibrated,
    load_named_model,
    named_checkpoint,
    note,
    own_classes,
    positive,
    share,
    threshold_for,
)
from trainers.config.command_line import one_line_errors
from trainers.errors import ConfigError
from trainers.inference.inputs import read_classes

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN_VARIABLE = "TC_CLIP_SERVE_TOKEN"
SHORTEST_TOKEN = 16  # letters


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument(
        "--classes", nargs="+", help="class names, a file or a label set, unless a request names others"
    )
    parser.add_argument("--threshold", type=share, metavar="P", help="as for predict")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default 8000)")
    parser.add_argument(
        "--token-file",
        type=Path,
        help=f"file with the token of requests (or the variable {TOKEN_VARIABLE})",
    )
    parser.add_argument("--max-mb", type=positive(int), default=64, help="all files of a request (default 64)")
    parser.add_argument("--max-files", type=positive(int), default=16, help="files of a request (default 16)")
    parser.add_argument("--max-requests", type=positive(int), default=8, help="requests at once (default 8)")
    parser.add_argument("--max-seconds", type=positive(float), default=120.0, help="longest video (default 120)")
    parser.add_argument(
        "--timeout", type=positive(float), default=60.0, help="seconds for a video, or for an upload (60)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Serve until stopped with Ctrl-C."""
    args = parse(argv)
    with one_line_errors():
        token = _token(args.token_file)
        if args.host not in LOOPBACK and token is None:
            raise ConfigError(
                f"--host {args.host} lets other machines ask; give a token with --token-file or {TOKEN_VARIABLE}"
            )
        try:
            import uvicorn

            from trainers.inference.service import OPEN_PATHS, Service, build_service
        except ImportError as error:
            raise ConfigError(
                f"the service needs {error.name}, in the extra 'web': pip install -r requirements-extra.txt"
            ) from None
        from trainers.inference.demo_guard import RequestGuard

        opened = _opened(args.host, args.port)
        classes = read_classes(args.classes) if args.classes else None
        checkpoint = named_checkpoint(args)
        model = load_named_model(args, classes or own_classes(args, checkpoint), checkpoint)
        service = Service(
            model,
            args.precision,
            threshold=threshold_for(model, args.threshold),
            temperature=calibrated(checkpoint),
            max_seconds=args.max_seconds,
            max_files=args.max_files,
            timeout_s=args.timeout,
        )
        guard = RequestGuard(
            build_service(service),
            args.max_mb * 2**20,
            token=token,
            open_paths=OPEN_PATHS,
            max_writing=args.max_requests,
            max_seconds=args.timeout,
            as_json=True,
        )
        config = uvicorn.Config(
            guard, log_level="warning", access_log=False, limit_concurrency=256, server_header=False, lifespan="off"
        )
        signal.signal(signal.SIGTERM, _stop)  # as Ctrl-C, so that the uploads are deleted
        signal.signal(signal.SIGINT, _stop)
        host, port = opened.getsockname()[:2]
        note(f"{model.name}, {len(model.class_names)} classes: http://{f'[{host}]' if ':' in host else host}:{port}")
        with opened, contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[opened])
    return 0


def _token(path: Path | None) -> str | None:
    """Return the token of a file, or else of the environment; None if there is none.

    Raises:
        ConfigError: it cannot be read, or is short or no plain text.
    """
    given = os.environ.get(TOKEN_VARIABLE)
    source = TOKEN_VARIABLE
    if path is not None:
        source = str(path)
        try:
            given = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if given is None:
        return None
    token = given.strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or any(letter.isspace() for letter in token):
        raise ConfigError(f"{source}: a token has at least {SHORTEST_TOKEN} letters or digits, without spaces")
    return token


def _opened(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ConfigError: the address cannot be used.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"{host}:{port}: cannot listen there: {getattr(error, 'strerror', None) or error}") from error


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt
