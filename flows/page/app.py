"""The routes of the page, and who may use them.

Whoever opens the page can change the learner, so every request needs the token that the command
prints: in the address once, then in a cookie that no other site can send. Pictures are answered
from memory and never written.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
)

from dynammo.errors import ConfigError, DataError, DynammoError
from dynammo.learner.folder import LearnerError, LearnerFolder
from dynammo.reporting.report import pages_of
from flows.page import view
from flows.page.champion import Champion
from flows.page.jobs import Jobs
from tasks.report_change import report_of
from tasks.support.version import by_hand, config_of, find_learner, read_version

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


class _Shown:
    """A learner that the page shows: its champion, and what changes it now."""

    def __init__(self, folder: LearnerFolder, public_key: Path | None, log: Path | None) -> None:
        self.folder = folder
        self.address = f"/learners/{folder.name}"
        self.champion = Champion(folder, public_key, log)
        self.jobs = Jobs()


def make_app(
    only: str | None, token: str, public_key: Path | None = None, log: Path | None = None
) -> FastAPI:
    """The application.

    Args:
        only: the learner to show; none: all that there are, also those that come later.
        token: what a request must know.
        public_key: a champion answers only if it is signed by this key.
        log: prediction log, to which a line is appended for every answer.
    """
    shown: dict[str, _Shown] = {}
    templates = pages_of(_HERE)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        for own in shown.values():
            await run_in_threadpool(own.jobs.close)

    app = FastAPI(
        title="DynaMMo", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )

    def find(name: str) -> _Shown:
        if only not in (None, name):
            raise LearnerError(f"this page shows {only}")
        if name not in shown:
            folder = find_learner(name)
            folder.pointer()  # there is one
            shown[name] = _Shown(folder, public_key, log)
        return shown[name]

    def page(name: str, status: int = 200, **values: Any) -> HTMLResponse:
        shared = {"several": not only, "learner": "", "address": ""}
        return HTMLResponse(templates.get_template(name).render(shared | values), status)

    def page_of(own: _Shown, name: str, **values: Any) -> HTMLResponse:
        return page(name, learner=own.folder.name, address=own.address, **values)

    @app.middleware("http")
    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        if request.url.path == "/static/page.css":  # of the page that asks for the token, too
            response = await call_next(request)
        elif not (entered := _entered(request, token)) and not _knows(request, token):
            response = page("login.html.j2", 401)
        else:
            response = entered or _refused(request) or await call_next(request)
        for name, value in _HEADERS.items():
            response.headers[name] = value
        return response

    @app.exception_handler(DynammoError)
    async def say(request: Request, error: DynammoError) -> Response:
        if request.url.path.endswith(("/answer", "/heat-map", "/similar")):
            return JSONResponse({"error": str(error)}, 422)
        return page("problem.html.j2", 400, problem=str(error))

    @app.get("/")
    def learners() -> Response:
        if only:
            return RedirectResponse(f"/learners/{only}", 303)
        return page("learners.html.j2", learners=view.learners())

    @app.get("/learners/{learner}")
    def home(learner: str) -> Response:
        own = find(learner)
        entries = view.timeline(own.folder)
        images, until = view.held_images(own.folder)
        return page_of(
            own,
            "home.html.j2",
            entries=entries,
            champion=next((it for it in entries if "champion" in it.marks), None),
            classes=own.champion.classes(),
            columns=own.champion.columns(),
            batches=view.batches(own.folder),
            held=images,
            until=until,
            job=own.jobs.state(),
            most=MOST_BYTES,
        )

    @app.get("/learners/{learner}/versions/{number}")
    def version(learner: str, number: int) -> Response:
        own = find(learner)
        entry = next((it for it in view.timeline(own.folder) if it.number == number), None)
        if entry is None:
            raise LearnerError(f"there is no version {number}")
        return page_of(
            own,
            "version.html.j2",
            entry=entry,
            recalls=view.class_recalls(own.folder, number),
            champion=own.folder.pointer()["champion"],
        )

    @app.get("/learners/{learner}/versions/{number}/report")
    def report(learner: str, number: int) -> Response:
        if not (file := report_of(find(learner).folder, number)).is_file():
            raise LearnerError(f"version {number} has no change report")
        return FileResponse(file, media_type="text/html")

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in _STATIC:
            raise HTTPException(404)
        return FileResponse(_HERE / name, media_type=_STATIC[name])

    @app.post("/learners/{learner}/answer")
    async def answer(learner: str, request: Request) -> dict[str, Any]:
        content, beside = await _body(request, MOST_BYTES), _beside(request)
        return await run_in_threadpool(find(learner).champion.answer, content, beside)

    @app.post("/learners/{learner}/heat-map")
    async def heat_map(learner: str, request: Request) -> Response:
        content = await _body(request, MOST_BYTES)
        label = request.query_params.get("label")
        png = await run_in_threadpool(find(learner).champion.heat_map, content, label)
        return Response(png, media_type="image/png")

    @app.post("/learners/{learner}/similar")
    async def similar(learner: str, request: Request) -> list[dict[str, Any]]:
        content = await _body(request, MOST_BYTES)
        return await run_in_threadpool(find(learner).champion.similar, content)

    @app.get("/learners/{learner}/job")
    def job(learner: str) -> dict[str, object]:
        return find(learner).jobs.state()

    @app.post("/learners/{learner}/job/stop")
    def stop(learner: str) -> Response:
        own = find(learner)
        own.jobs.stop()
        return RedirectResponse(f"{own.address}#job", 303)

    @app.post("/learners/{learner}/change/{what}")
    async def change(learner: str, what: str, request: Request) -> Response:
        own = find(learner)
        form = parse_qs((await _body(request, _FORM_BYTES)).decode("utf-8", "replace"))
        command, consequence = _command(own.folder, what, form)
        if form.get("confirmed") != ["yes"]:
            return page_of(
                own,
                "confirm.html.j2",
                what=what,
                form=form,
                command=["dynammo", *command],
                consequence=consequence,
            )
        own.jobs.start(command)
        return RedirectResponse(f"{own.address}#job", 303)

    return app


def _entered(request: Request, token: str) -> Response | None:
    """To the same place without the token, if its address has it."""
    given = request.query_params.get("token")
    if request.method == "GET" and given is not None and _same(given, token):
        response = RedirectResponse(request.url.path, 303)
        response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        return response
    return None


def _knows(request: Request, token: str) -> bool:
    return _same(request.cookies.get(COOKIE, ""), token)


def _refused(request: Request) -> Response | None:
    """None if it comes from this page."""
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


def _beside(request: Request) -> dict[str, str]:
    """What is known beside a picture, JSON in a header: addresses are logged, headers are not.

    Raises:
        DataError: it is something else.
    """
    try:
        found = json.loads(unquote(request.headers.get("x-beside", "{}")))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise DataError("x-beside: expected texts by column, as JSON")
    return found


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
        passes = (
            "waits for a person"
            if by_hand(folder, config_of(read_version(folder)))
            else "becomes champion"
        )
        return (
            ["learn", name, path],
            f"{name} learns {path} and makes its next version, which {passes} if it passes its "
            "gate. The images are not needed afterwards.",
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
