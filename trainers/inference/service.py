"""Prediction over HTTP: several videos in one request, replies as the JSON of `tc-clip predict`.

Needs FastAPI, which gradio brings (the extra `web`).
"""

import re
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

import tc_clip
from tc_clip.protocol import VideoTextModel
from trainers.inference.demo import VisitorError, class_names_of
from trainers.inference.output_files import record_of
from trainers.inference.predict import VideoPrediction, iter_predictions
from video_datasets.decoding import VideoReadError
from video_datasets.isolation import isolated

MAX_VIEWS = 10
OPEN_PATHS = frozenset({"/health"})  # without a token


class Score(BaseModel):
    """The score of a class, from 0 to 1."""

    class_: str = Field(alias="class")
    score: float


class Record(BaseModel):
    """What the model finds in a video; `error` is one line if it cannot be read.

    Only a model for any number of classes a video gives `labels`: those that reach the threshold.
    """

    video: str
    error: str | None
    seconds: float
    label: str | None
    labels: list[str] = []
    predictions: list[Score]


class Problem(BaseModel):
    """Why there is no result, in one line."""

    error: str


class Health(BaseModel):
    """What is served."""

    status: str
    model: str
    version: str
    num_classes: int
    calibrated: bool


class Service:
    """Predicts the videos of one request at a time, because the class names are set on the model.

    Args:
        model: on its device, with the class names that are scored unless a request names others.
        precision: as for `trainers.inference.predict.iter_predictions`.
        threshold: score below which a label is `none of these`, unless a request gives another.
        temperature: of the checkpoint's calibration, or None.
        max_seconds: longest video.
        max_files: of a request.
        timeout_s: seconds to wait for the frames of a video.
    """

    def __init__(
        self,
        model: VideoTextModel,
        precision: str = "auto",
        *,
        threshold: float = 0.0,
        temperature: float | None = None,
        max_seconds: float = 120.0,
        max_files: int = 16,
        timeout_s: float = 60.0,
    ):
        self.model = model
        self.precision = precision
        self.threshold = threshold
        self.temperature = temperature
        self.max_seconds = max_seconds
        self.max_files = max_files
        self.timeout_s = timeout_s
        self.class_names = tuple(model.class_names)
        self._lock = threading.Lock()

    def predict(
        self,
        videos: Sequence[tuple[str, str]],
        classes: Sequence[str] = (),
        top: int = 5,
        threshold: float | None = None,
        views: int = 1,
    ) -> list[VideoPrediction]:
        """Return a prediction for every video, in order.

        Args:
            videos: name and path of each.
            classes: class names, else those of the service; top, threshold, views: as `iter_predictions` has them.

        Raises:
            VisitorError: a class name does not fit.
        """
        limits = [self._limit(path) for _, path in videos]
        good = [path for (_, path), error in zip(videos, limits, strict=True) if error is None]
        with self._lock:
            names = tuple(classes) or self.class_names
            if names != tuple(self.model.class_names):
                try:
                    self.model.set_class_names(list(names))
                except ValueError as error:
                    raise VisitorError(f"a class name does not fit: {error}") from error
            found = iter_predictions(
                self.model,
                good,
                top=top,
                num_clips=views,
                num_workers=0,  # decodes in a process that lives as long as the service
                precision=self.precision,
                timeout_s=self.timeout_s,
                threshold=self.threshold if threshold is None else threshold,
                temperature=self.temperature,
            )
            return [
                replace(next(found), path=name) if error is None else VideoPrediction(name, (), (), 0.0, error)
                for (name, _), error in zip(videos, limits, strict=True)
            ]

    def _limit(self, path: str) -> str | None:
        """Return why a video is not read, or None."""
        try:
            seconds = isolated(timeout_s=self.timeout_s).seconds(path)
        except VideoReadError as error:
            return error.reason
        if seconds > self.max_seconds:
            return f"it is {seconds:.0f} s long; the limit is {self.max_seconds:.0f} s"
        return None


def build_service(service: Service) -> FastAPI:
    """Return the application, without its limits of size and origin (`trainers.inference.demo_guard`).

    `GET /health`, `POST /predict` and the schema at `/openapi.json`. Errors are `Problem`s with a status: 413 too many
    files, 422 a wrong field or no readable video.
    """
    app = FastAPI(
        title="TC-CLIP",
        version=tc_clip.__version__,
        description="Names the actions in videos.",
        docs_url=None,  # both pages load scripts from other machines
        redoc_url=None,
    )
    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": text}
        for status, text in (
            (401, "the token is missing or wrong"),
            (403, "a request of another page or for another host"),
            (413, "too many files, or too large"),
            (422, "a wrong field, or no video can be read"),
            (503, "too many requests at once"),
        )
    }

    @app.get("/health")
    def health() -> Health:
        """Return that the service runs, and what it serves."""
        return Health(
            status="ok",
            model=service.model.name,
            version=tc_clip.__version__,
            num_classes=len(service.class_names),
            calibrated=service.temperature is not None,
        )

    @app.post("/predict", response_model=list[Record], responses=problems)
    def predict(
        files: Annotated[list[UploadFile], File(description="videos")],
        classes: Annotated[
            list[str] | None, Form(description="class names: one a field, or one a line; default: the service's own")
        ] = None,
        top: Annotated[int, Form(ge=1, description="classes to report of each video")] = 5,
        threshold: Annotated[
            float | None, Form(ge=0, le=1, description="a lower best score is labelled 'none of these'")
        ] = None,
        views: Annotated[int, Form(ge=1, le=MAX_VIEWS, description="temporal views, whose scores are averaged")] = 1,
    ) -> JSONResponse:
        """Predict the actions in videos; a video that cannot be read has an error in its record."""
        if len(files) > service.max_files:
            raise HTTPException(413, f"{len(files)} files are too many; the limit is {service.max_files}")
        names = class_names_of("\n".join(classes) + "\n") if classes else []
        with tempfile.TemporaryDirectory(prefix="tc_clip_serve_") as folder:
            videos = []
            for number, upload in enumerate(files):
                name = _name_of(upload, number)
                path = Path(folder, f"{number}{_suffix(name)}")
                with path.open("wb") as file:
                    shutil.copyfileobj(upload.file, file)
                videos.append((name, str(path)))
            found = service.predict(videos, names, top, threshold, views)
        if all(item.error is not None for item in found):
            several = f"none of the {len(found)} videos can be read; " if len(found) > 1 else ""
            raise HTTPException(422, f"{several}{found[0].path}: cannot be read: {found[0].error}")
        return JSONResponse([record_of(item) for item in found])

    @app.exception_handler(VisitorError)
    def refuse(request: Request, error: VisitorError) -> JSONResponse:
        return _problem(422, str(error))

    @app.exception_handler(HTTPException)
    def explain(request: Request, error: HTTPException) -> JSONResponse:
        return _problem(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    def name_field(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = error.errors()[0]
        field = ".".join(str(part) for part in wrong["loc"][1:])
        return _problem(422, f"{field}: {wrong['msg']}")

    @app.exception_handler(Exception)
    def fail(request: Request, error: Exception) -> JSONResponse:
        return _problem(500, f"the service failed ({type(error).__name__}); its log has more")

    return app


def _problem(status: int, text: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": " ".join(text.split())}, status, headers)


def _name_of(upload: UploadFile, number: int) -> str:
    """Return the last part of a file's name without control characters."""
    name = re.split(r"[/\\]", upload.filename or "")[-1]
    return "".join(letter for letter in name if letter.isprintable())[:255] or f"video {number + 1}"


def _suffix(name: str) -> str:
    suffix = Path(name).suffix
    return suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", suffix) else ""
