"""Reports of `dynammo predict` for other systems: DICOM SR and FHIR, a file an image or series."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dynammo.checkpoint import check_writable, to_json, write_atomically
from dynammo.data.formats.pictures import HashedFile, is_dicom
from dynammo.deploy.finding import find, own_codes, read_codes, read_device
from dynammo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pydicom import Dataset

    from dynammo.deploy.answers import Answer, Answering


class Reports:
    """Writes what is asked for.

    Args:
        dicom_sr: folder for Structured Reports on DICOM images; none: no such reports.
        fhir: folder for DiagnosticReports.
        codes: CSV of codes of the classes.
        model: folder of the model.
        predictor: the model that answers.

    Raises:
        ConfigError: codes, and no report that would have them.
        DataError: the codes do not fit.
        MissingExtra: a package that writes DICOM is not installed.
        OSError: a folder cannot be written to.
    """

    def __init__(
        self,
        dicom_sr: Path | None,
        fhir: Path | None,
        codes: Path | None,
        model: Path,
        predictor: Answering,
    ) -> None:
        self.dicom_sr, self.fhir = dicom_sr, fhir
        if codes is not None and not self:
            raise ConfigError(["--codes is for reports: --dicom-sr, --fhir"])
        if not self:
            return
        for folder in (dicom_sr, fhir):
            if folder is not None:
                check_writable(folder / "report")
        classes = predictor.classes
        self.codes = own_codes(classes) if codes is None else read_codes(codes, classes)
        self.device = read_device(model, predictor.model_sha256)
        if fhir is not None:
            from dynammo.deploy.fhir import check_schemes

            check_schemes(self.codes.values())
        if dicom_sr is not None:
            import dynammo.deploy.dicom_report  # noqa: F401  (whether it can be)

    def __bool__(self) -> bool:
        return self.dicom_sr is not None or self.fhir is not None

    def write(self, file: HashedFile, answer: Answer) -> None:
        """Write the reports on an image.

        Raises:
            DataError: there can be none, or the file is no longer the one that was classified.
        """
        again = HashedFile(file.file)
        content = again.read()
        if again.sha256 != file.sha256:
            raise DataError(f"{file}: it was changed after it was classified")
        finding = find(answer, file.sha256, self.codes, self.device)
        # A folder's name may have points, as a series' UID has.
        stem = file.file.name if file.file.is_dir() else file.file.stem
        name = f"{stem}-{file.sha256[:12]}"
        contents = [content] if isinstance(content, bytes) else [own for _, own in content]
        headers: list[Dataset] = []
        try:
            if any(map(is_dicom, contents)):
                from dynammo.data.formats.dicom import read_headers

                headers = read_headers(content)
            if self.fhir is not None:
                from dynammo.deploy.fhir import diagnostic_report

                document = to_json(diagnostic_report(finding, headers))
                write_atomically(self.fhir / f"{name}.json", document)
            if self.dicom_sr is not None:
                from dynammo.deploy.dicom_report import structured_report

                if not headers:
                    raise DataError("it is no DICOM file, so that no DICOM report can refer to it")
                write_atomically(self.dicom_sr / f"{name}.dcm", structured_report(headers, finding))
        except DataError as error:
            raise DataError(f"{file}: {error}") from None
