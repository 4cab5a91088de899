"""The page of a learner: who may use it, what it answers, and that it changes nothing unasked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from PIL import Image

from dynammo.data.formats.pictures import load_image
from dynammo.deploy.predictor import Predictor
from dynammo.deploy.similar import most_alike, remember
from flows.page import app as page
from flows.page.app import COOKIE, make_app
from flows.promote import promote
from flows.purge import purge
from tasks.kept_pictures import kept_pictures
from tasks.support.version import find_learner
from tests.flows.page.browser import CHROMIUM, browser
from tests.flows.page.server import serving
from tests.models import record, reseal

TOKEN = "known to the user"
OWN = "/learners/shapes"
pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def client(begun: Path) -> Iterator[TestClient]:
    """Somebody who has opened the page."""
    application = make_app("shapes", TOKEN, log=Path("log.jsonl"))
    with TestClient(application, base_url=f"http://here{OWN}") as client:
        assert client.get("/", params={"token": TOKEN}).history[0].status_code == 303
        yield client


def picture(begun: Path) -> Path:
    return next((begun / "test" / "amber").iterdir())


def test_nothing_is_told_without_the_token(begun: Path) -> None:
    with TestClient(make_app("shapes", TOKEN)) as stranger:
        for path in (
            "/",
            f"{OWN}",
            f"{OWN}/versions/1",
            f"{OWN}/versions/1/report",
            f"{OWN}/job",
            "/static/page.js",
            "/?token=x",
        ):
            assert stranger.get(path).status_code == 401
        for path in (
            "/answer",
            "/heat-map",
            "/similar",
            "/change/rollback",
            "/job/stop",
            f"?token={TOKEN}",
        ):
            assert stranger.post(OWN + path, content=b"x").status_code == 401


def test_another_site_cannot_change_anything(client: TestClient) -> None:
    headers = {"Origin": "http://elsewhere"}
    form = {"version": "1", "confirmed": "yes"}
    assert client.post("/change/rollback", data=form, headers=headers).status_code == 403
    assert client.get("/job").json()["command"] == ""
    reply = client.get("/")
    assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
    assert (
        "samesite=strict" in client.get(f"/?token={TOKEN}").history[0].headers["set-cookie"].lower()
    )


def test_it_shows_versions_classes_and_what_is_held(client: TestClient) -> None:
    home = client.get("/").text
    for part in ("Version 1", "champion", "amber, birch", "test images", "exemplars"):
        assert part in home
    version = client.get("/versions/1").text
    assert "amber" in version and "<meter" in version
    assert "Change report" in client.get("/versions/1/report").text
    assert client.get("/versions/9").status_code == 400
    assert "there is no version 9" in client.get("/versions/9").text


def test_all_learners_are_listed_unless_one_is_named(begun: Path) -> None:
    with TestClient(make_app(None, TOKEN), cookies={COOKIE: TOKEN}) as client:
        assert f'<a href="{OWN}">shapes</a>' in client.get("/").text
        assert 'href="/">All learners' in client.get(OWN).text
        assert "there is no learner" in client.get("/learners/shape").text
    with TestClient(make_app("shapes", TOKEN), cookies={COOKIE: TOKEN}) as client:
        assert client.get("/").url.path == OWN
        assert "this page shows shapes" in client.get("/learners/other").text


def test_before_the_first_batch_it_says_how_a_learner_begins(tmp_path: Path) -> None:
    with TestClient(make_app(None, TOKEN), cookies={COOKIE: TOKEN}) as client:
        assert "dynammo learn NAME FOLDER" in client.get("/").text


def test_it_answers_as_predict_does_and_logs_it(client: TestClient, begun: Path) -> None:
    content = picture(begun).read_bytes()
    answer = client.post("/answer", content=content).json()
    (expected,) = Predictor(find_learner("shapes").path / "model").predict([content])
    assert answer == json.loads(json.dumps(expected._asdict()))
    (line,) = Path("log.jsonl").read_text().splitlines()
    assert hashlib.sha256(content).hexdigest() in line
    reply = client.post("/heat-map", params={"label": "birch"}, content=content)
    assert reply.content.startswith(b"\x89PNG")


def test_what_is_known_of_the_patient_is_gone_by(client: TestClient, begun: Path) -> None:
    folder, noise = find_learner("shapes").path / "model", BytesIO()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (48, 48, 3), np.uint8)).save(noise, "PNG")
    content = noise.getvalue()
    assert "data-column" not in client.get("/").text
    reseal(folder, {"clinical": {"weight": 1.0, "categories": {"wärd <3>": {"<A>": [9.0, 0.0]}},
                                 "numbers": {"age": [[60.0, 40.0], [1.0, 1.0]]}}})  # fmt: skip
    if (folder / "graph.json").exists():
        record(folder)
    home = client.get("/").text
    assert '<select data-column="wärd &lt;3&gt;">' in home and "<option>&lt;A&gt;</option>" in home
    assert '<input type="number" step="any" data-column="age">' in home
    alone = client.post("/answer", content=content).json()
    assert client.post("/answer", content=content, headers={"X-Beside": "{}"}).json() == alone

    def said(**known: str) -> Response:
        return client.post(
            "/answer", content=content, headers={"X-Beside": quote(json.dumps(known))}
        )

    shares, before = said(**{"wärd <3>": "<A>", "age": "60"}).json(), alone["probabilities"]
    assert shares["probabilities"]["amber"] > before["amber"]
    for wrong, reason in (
        (said(age="old"), "age: 'old' is no number"),
        (
            client.post("/answer", content=content, headers={"X-Beside": "[1]"}),
            "x-beside: expected",
        ),
    ):
        assert wrong.status_code == 422 and reason in wrong.json()["error"]


def test_it_shows_what_is_kept_and_seen_alike(client: TestClient, begun: Path) -> None:
    folder, content = find_learner("shapes"), picture(begun).read_bytes()
    pictures, labels = kept_pictures(folder, folder.path / "model")
    predictor = Predictor(folder.path / "model")
    image = load_image(content, predictor.form.size)
    expected = most_alike(predictor, image, remember(predictor, pictures, labels))
    found = client.post("/similar", content=content).json()
    assert [(own["label"], own["likeness"]) for own in found] == [
        (own.label, pytest.approx(own.likeness)) for own in expected
    ]
    assert all(own["picture"].startswith("data:image/png;base64,") for own in found)
    assert "not a readable" in client.post("/similar", content=b"x").json()["error"]
    purge("shapes")
    assert client.post("/similar", content=content).json() == []


@pytest.mark.parametrize(
    ("path", "content", "status", "says"),
    [
        ("/answer", b"no picture", 422, "not a readable"),
        ("/similar", b"x" * 2001, 413, "more than 2,000 bytes"),
        ("/heat-map", b"", 422, "not a readable"),
        ("/answer", b"x" * 2001, 413, "more than 2,000 bytes"),
    ],
)
def test_what_cannot_be_answered(
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    content: bytes,
    status: int,
    says: str,
) -> None:
    monkeypatch.setattr(page, "MOST_BYTES", 2000)
    reply = client.post(path, content=content)
    assert reply.status_code == status
    assert says in reply.text


def test_an_unknown_class_has_no_heat_map(client: TestClient, begun: Path) -> None:
    content = picture(begun).read_bytes()
    reply = client.post("/heat-map", params={"label": "lime"}, content=content)
    assert (reply.status_code, reply.json()["error"]) == (422, "the model knows no class 'lime'")


@pytest.mark.parametrize(
    ("what", "form", "says"),
    [
        ("learn", {"batch": "nowhere"}, "nowhere: there is no such file"),
        ("learn", {}, "no folder: there is no such file"),
        ("forget", {}, "nothing was chosen to forget"),
        ("rollback", {"version": "9"}, "has no version 9"),
        ("promote", {"version": "--help"}, "nothing was chosen to promote"),
        ("purge", {}, "nothing was chosen to purge"),
    ],
)
def test_a_form_that_says_nothing_is_refused(
    client: TestClient, what: str, form: dict[str, str], says: str
) -> None:
    reply = client.post(f"/change/{what}", data={**form, "confirmed": "yes"})
    assert reply.status_code == 400
    assert says in reply.text
    assert client.get("/job").json()["command"] == ""


def test_a_change_is_confirmed_first(client: TestClient, begun: Path) -> None:
    """The command is shown as it would be typed; names of files are no options and no HTML."""
    odd = begun.with_name("--help & <b>")
    odd.mkdir()
    reply = client.post("/change/learn", data={"batch": odd.name})
    assert f"dynammo learn shapes {odd.parent}/--help &amp; &lt;b&gt;" in reply.text
    assert client.get("/job").json()["command"] == ""
    reply = client.post("/change/forget", data={"batch": ["1", "x"]})
    assert "dynammo forget shapes --tasks 1<" in reply.text


def test_the_champion_is_read_again_when_it_is_another(client: TestClient, begun: Path) -> None:
    """What was loaded does not answer in its place; here the other one is damaged."""
    content = picture(begun).read_bytes()
    assert "probabilities" in client.post("/answer", content=content).json()
    manifest = find_learner("shapes").path / "model" / "model.json"
    manifest.write_text(manifest.read_text().replace("amber", "azure"))
    assert (
        "exported from another model.json"
        in client.post("/answer", content=content).json()["error"]
    )


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as Debian has it")
def test_in_a_browser(begun: Path, tmp_path: Path) -> None:
    """Ask for a picture and its heat map, then go back to a version: confirmed, run and shown."""
    pictures = sorted((begun / "test" / "amber").iterdir())[:2]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    promote("shapes", 1)
    before = len(find_learner("shapes").pointer()["champions"])
    with serving(make_app("shapes", TOKEN)) as url, browser(tmp_path / "b") as tab:
        tab.open(f"{url}/?token={TOKEN.replace(' ', '+')}")
        tab.upload("#pictures", [*pictures, broken])
        tab.wait("document.getElementById('progress').textContent === '3 of 3 pictures answered'")
        answers = tab.run("[...document.querySelectorAll('#answers li')].map(e => e.innerText)")
        assert "amber" in answers[0] and "%" in answers[0]
        assert "not a readable" in answers[2]
        tab.wait("document.querySelector('#answers .similar img')?.naturalWidth > 0")
        tab.run("document.querySelector('#answers button').click()")
        tab.wait("document.querySelector('#answers img.map')?.naturalWidth > 0")

        tab.run("document.querySelector('form[action$=\"/change/forget\"] input').click()")
        tab.run("document.querySelector('form[action$=\"/change/forget\"] button').click()")
        tab.wait("document.querySelector('h1')?.textContent === 'Forget?'")
        tab.run("document.querySelector('main form button').click()")
        tab.wait("/ended/.test(document.getElementById('status')?.textContent)", seconds=300)
        assert "error: nothing would be left" in tab.run(
            "document.getElementById('lines').textContent"
        )
    assert len(find_learner("shapes").pointer()["champions"]) == before
