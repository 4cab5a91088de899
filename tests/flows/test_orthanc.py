"""A PACS (Orthanc) on this machine: an image goes in, its reports come back and are found."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AE

from tests.flows.test_cli import output
from tests.models import graph_folder
from tests.scans import STUDY, scan

ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SR, HERE = "1.2.840.10008.5.1.4.1.1.88.33", "127.0.0.1"

pytestmark = pytest.mark.skipif(
    ORTHANC is None or not DICOMWEB.exists(),
    reason="no Orthanc here; with Debian: apt-get install orthanc orthanc-dicomweb",
)


class Pacs(NamedTuple):
    """Orthanc, and how to speak to it."""

    web: httpx.Client
    port: int

    def store(self, *files: Path) -> None:
        """Send DICOM files as a modality does (C-STORE)."""
        datasets = [dcmread(file) for file in files]
        modality = AE(ae_title="MODALITY")
        for dataset in datasets:
            syntax = dataset.file_meta.TransferSyntaxUID
            modality.add_requested_context(dataset.SOPClassUID, syntax)
        association = modality.associate(HERE, self.port, ae_title="ORTHANC")
        assert association.is_established
        try:
            assert [association.send_c_store(one).Status for one in datasets] == [0] * len(files)
        finally:
            association.release()

    def get(self, path: str, **query: str) -> httpx.Response:
        response = self.web.get(path, params=query)
        response.raise_for_status()
        return response

    def fetch(self, unique: str) -> Dataset:
        """The instance with this UID, through Orthanc's own interface."""
        (found,) = self.web.post("/tools/lookup", content=unique).raise_for_status().json()
        return dcmread(BytesIO(self.get(f"{found['Path']}/file").content))


def free_ports(count: int) -> list[int]:
    listening = [socket.create_server((HERE, 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in listening]
    for one in listening:
        one.close()
    return ports


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Pacs]:
    """Nobody but this machine may ask it, and by HTTP with the password alone."""
    web, dicom = free_ports(2)
    password = secrets.token_hex()
    settings: dict[str, Any] = {
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "Plugins": [str(DICOMWEB)],
        "HttpPort": web,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"test": password},
        "DicomPort": dicom,
        "DicomModalities": {"modality": ["MODALITY", HERE, dicom]},
        "DicomAlwaysAllowStore": False,
        "DicomAlwaysAllowEcho": False,
        "DicomCheckModalityHost": True,
    }
    file = tmp_path / "orthanc.json"
    file.write_text(json.dumps(settings))
    assert ORTHANC is not None
    with (
        (tmp_path / "orthanc.log").open("w") as log,
        subprocess.Popen([ORTHANC, str(file)], stdout=log, stderr=log) as process,
        httpx.Client(base_url=f"http://{HERE}:{web}", auth=("test", password)) as client,
    ):
        try:
            for _ in range(300):
                assert process.poll() is None, (tmp_path / "orthanc.log").read_text()
                try:
                    client.get("/system").raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield Pacs(client, dicom)
        finally:
            process.terminate()


def test_an_image_goes_in_and_its_report_comes_back(pacs: Pacs, tmp_path: Path) -> None:
    pacs.store(scan(tmp_path / "sent.dcm"))
    image = pacs.fetch("1.2.826.0.1.3680043.8.498.1")
    image.save_as(tmp_path / "scan.dcm")
    model, sr = graph_folder(tmp_path / "model"), tmp_path / "sr"
    output("predict", "-m", model, tmp_path / "scan.dcm", "--dicom-sr", sr)
    (report,) = sr.iterdir()
    for _ in range(2):  # the second time changes nothing
        pacs.store(report)
    assert pacs.get("/statistics").json()["CountInstances"] == 2

    # DICOMweb: the study has a series of reports (QIDO-RS), which names the image (WADO-RS).
    asked = {"Modality": "SR", "includefield": "SeriesDescription"}
    (series,) = pacs.get(f"/dicom-web/studies/{STUDY}/series", **asked).json()
    assert series["0008103E"]["Value"] == ["DynaMMo: predicted classes"]
    of_patient = pacs.get("/dicom-web/instances", PatientID="P-17", SOPClassUID=SR)
    (found,) = of_patient.json()
    written = dcmread(report)
    assert found["00080018"]["Value"] == [written.SOPInstanceUID]
    place = f"/dicom-web/studies/{STUDY}/series/{series['0020000E']['Value'][0]}"
    (metadata,) = pacs.get(f"{place}/metadata").json()
    (study,) = metadata["0040A375"]["Value"]
    (referred,) = study["00081115"]["Value"]
    assert referred["00081199"]["Value"][0]["00081155"]["Value"] == [image.SOPInstanceUID]

    # REST: what comes back says what was sent.
    returned = pacs.fetch(written.SOPInstanceUID)
    assert returned.ContentSequence == written.ContentSequence
    assert returned.PatientName == "Müller^Jörg"


def test_the_archive_is_for_nobody_else(pacs: Pacs) -> None:
    assert httpx.get(f"{pacs.web.base_url}/system").status_code == 401
    stranger = AE(ae_title="STRANGER")
    stranger.add_requested_context(SR)
    association = stranger.associate(HERE, pacs.port, ae_title="ORTHANC")
    assert not association.is_established
