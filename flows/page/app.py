"""The routes of the page, and who may use them.

Whoever opens the page can change the learner, so every request needs the token that the command
prints: in the address once, then in a cookie that no other site can send. Pictures are answered
from memory and never written.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
)

from dynammo.data.formats.pictures import load_image
from dynammo.deploy.answers import Answering
from dynammo.deploy.graph import load_predictor
from dynammo.deploy.log import PredictionLog
from dynammo.deploy.predictor import Predictor
from dynammo.errors import ConfigError, DataError, DynammoError
from dynammo.learner.folder import LearnerError, LearnerFolder
from dynammo.reporting.figures import to_png
from dynammo.reporting.heat_map import explain
from dynammo.reporting.report import pages_of
from flows.page import view
from flows.page.jobs import Jobs
from tasks.report_change import report_of

COOKIE = "dynammo-app"
MOST_BYTES = 64 * 2**20  # of one picture
_FORM_BYTES = 64 * 2**10
_HERE = Path(__file__).parent
_STATIC = {"page.css": "text/css", "page.js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with none, a form says nothing of where it comes from
    "Cache-Control": "no-store",
}


def make_app(
    folder: LearnerFolder, token: str, public_key: Path | None = None, log: Path | None = None
) -> FastAPI:
    """The application.

    Args:
        folder: of a learner that has learnt something.
        token: what a request must know.
        public_key: the champion answers only if it is signed by this key.
        log: prediction log, to which a line is appended for every answer.
    """
    jobs = Jobs()
    champion = _Champion(folder, public_key, log)
    templates = pages_of(_HERE)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(jobs.close)

    app = FastAPI(
        title="DynaMMo", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )

    def page(name: str, status: int = 200, **values: Any) -> HTMLResponse:
        html = templates.get_template(name).render(learner=folder.name, **values)
        return HTMLResponse(html, status)

    @app.middleware("http")
    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = _refused(request, token) or await call_next(request)
        for name, value in _HEADERS.items():
            response.headers[name] = value
        return response

    @app.exception_handler(DynammoError)
    async def say(request: Request, error: DynammoError) -> Response:
        if request.url.path in ("/answer", "/heat-map"):
            return JSONResponse({"error": str(error)}, 422)
        return page("problem.html.j2", 400, problem=str(error))

    @app.get("/")
    def home() -> Response:
        entries = view.timeline(folder)
        deployed = next((it for it in entries if "champion" in it.marks), None)
        images, until = view.held_images(folder)
        return page(
            "home.html.j2",
            entries=entries,
            champion=deployed,
            classes=champion.classes(),
            batches=view.batches(folder),
            held=images,
            until=until,
            job=jobs.state(),
            most=MOST_BYTES,
        )

    @app.get("/versions/{number}")
    def version(number: int) -> Response:
        entry = next((it for it in view.timeline(folder) if it.number == number), None)
        if entry is None:
            raise LearnerError(f"there is no version {number}")
        return page(
            "version.html.j2",
            entry=entry,
            recalls=view.class_recalls(folder, number),
            champion=folder.pointer()["champion"],
        )

    @app.get("/versions/{number}/report")
    def report(number: int) -> Response:
        if not (file := report_of(folder, number)).is_file():
            raise LearnerError(f"version {number} has no change report")
        return FileResponse(file, media_type="text/html")

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in _STATIC:
            raise HTTPException(404)
        return FileResponse(_HERE / name, media_type=_STATIC[name])

    @app.post("/answer")
    async def answer(request: Request) -> dict[str, Any]:
        content = await _body(request, MOST_BYTES)
        return await run_in_threadpool(champion.answer, content)

    @app.post("/heat-map")
    async def heat_map(request: Request) -> Response:
        content = await _body(request, MOST_BYTES)
        label = request.query_params.get("label")
        png = await run_in_threadpool(champion.heat_map, content, label)
        return Response(png, media_type="image/png")

    @app.get("/job")
    def job() -> dict[str, object]:
        return jobs.state()

    @app.post("/job/stop")
    def stop() -> Response:
        jobs.stop()
        return RedirectResponse("/#job", 303)

    @app.post("/change/{what}")
    async def change(what: str, request: Request) -> Response:
        form = parse_qs((await _body(request, _FORM_BYTES)).decode("utf-8", "replace"))
        command, consequence = _command(folder, what, form)
        if form.get("confirmed") != ["yes"]:
            return page(
                "confirm.html.j2",
                what=what,
                form=form,
                command=["dynammo", *command],
                consequence=consequence,
            )
        jobs.start(command)
        return RedirectResponse("/#job", 303)

    return app


class _Champion:
    """The champion, loaded when it is first asked and again when another took its place."""

    def __init__(self, folder: LearnerFolder, public_key: Path | None, log: Path | None) -> None:
        self._model, self._key, self._log = folder.path / "model", public_key, log
        self._lock = threading.Lock()
        self._loaded: dict[str | None, tuple[bytes, Answering]] = {}

    def classes(self) -> list[str]:
        """What it knows; none without a champion."""
        if not self._model.is_dir():
            return []
        with self._lock:
            return self._predictor(None).classes

    def answer(self, content: bytes) -> dict[str, Any]:
        """What it says of a picture, as `Answer` has it."""
        with self._lock:
            predictor = self._predictor(None)
            (answer,) = predictor.stream([content])
            if isinstance(answer, DataError):
                raise answer
            if self._log is not None:
                digest = hashlib.sha256(content).hexdigest()
                PredictionLog(self._log, predictor.model_sha256).append([(digest, answer)])
        return answer._asdict()

    def heat_map(self, content: bytes, label: str | None) -> bytes:
        """A PNG of where a class is seen; none: the most probable one."""
        with self._lock:
            predictor = self._predictor("torch")
            assert isinstance(predictor, Predictor)
            picture = load_image(content, predictor.size)
            figure, _ = explain(predictor, picture, label)
            return to_png(figure)

    def _predictor(self, engine: str | None) -> Answering:
        """The lock must be held."""
        if not self._model.is_dir():
            raise LearnerError("there is no champion yet, so nothing can be answered")
        made_of = (self._model / "model.json").read_bytes()
        if engine not in self._loaded or self._loaded[engine][0] != made_of:
            predictor = load_predictor(self._model, engine, public_key=self._key)
            self._loaded[engine] = (made_of, predictor)
        return self._loaded[engine][1]


def _refused(request: Request, token: str) -> Response | None:
    """None if the request knows the token and comes from this page."""
    given = request.query_params.get("token")
    if request.method == "GET" and given is not None and _same(given, token):
        response = RedirectResponse(request.url.path, 303)
        response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        return response
    if not _same(request.cookies.get(COOKIE, ""), token):
        text = "open the address that `dynammo app` printed: it has the token\n"
        return PlainTextResponse(text, 401)
    origin = request.headers.get("origin")
    if request.method != "GET" and origin not in (None, str(request.base_url).rstrip("/")):
        return PlainTextResponse("this was sent by another site\n", 403)
    return None


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


async def _body(request: Request, most: int) -> bytes:
    """What was sent, refused as soon as it is too long."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > most:
            raise HTTPException(413, f"more than {most:,} bytes")
    return bytes(content)


def _command(folder: LearnerFolder, what: str, form: dict[str, list[str]]) -> tuple[list[str], str]:
    """The command that a form stands for, and in words what will come of it.

    Raises:
        ConfigError: the form says nothing that could be done.
        LearnerError: there is no such version.
    """
    name = folder.name
    if what == "learn":
        batch = form.get("batch", [""])[0].strip()
        if not batch or not Path(batch).expanduser().exists():
            raise ConfigError([f"{batch or 'no folder'}: there is no such file or folder here"])
        path = str(Path(batch).expanduser().absolute())
        return (
            ["learn", name, path],
            f"{name} learns {path} and makes its next version, which becomes champion if it passes "
            "its gate. The images are not needed afterwards.",
        )
    if what == "forget" and (chosen := form.get("batch")):
        numbers = ",".join(str(int(number)) for number in chosen if number.isdecimal())
        return (
            ["forget", name, "--tasks", numbers],
            f"{name} goes on without the batches {numbers}, as a new version. Old versions still "
            "hold them.",
        )
    if what in ("promote", "rollback") and (number := form.get("version", [""])[0]).isdecimal():
        folder.version(int(number))
        reason = form.get("reason", [""])[0].strip()
        command = [what, name, number, *(["--reason", reason] if reason else [])]
        words = {
            "promote": f"Version {number} becomes champion: it answers from now on.",
            "rollback": f"Version {number} becomes champion, and learning goes on from it. Nothing "
            "is lost.",
        }
        return command, words[what]
    raise ConfigError([f"nothing was chosen to {what}"])
