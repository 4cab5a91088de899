"""What must hold of the repository as a whole: files that belong together agree."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from prefect import Flow

import dynammo

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS += [ROOT / "mlflow" / "README.md", ROOT / "CHANGELOG.md"]
DOCUMENTS += sorted((ROOT / "benchmarks").rglob("*.md"))
APART = ("federated", "evidently", "backbones", "executorch")  # extras that the lock leaves out


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))["project"]


def pins() -> dict[str, Version]:
    return {name: Version(version) for name, version, _ in entries("requirements.lock")}


def entries(lock: str) -> list[tuple[str, str, str]]:
    """Name, version, and the rest of each entry of a lock."""
    return re.findall(r"^([a-z0-9-]+)==(\S+)((?: \\\n    \S+)*)$", read(lock), re.MULTILINE)


def test_mlflow_holds_no_python_file() -> None:
    # It would hide the package of that name, or break every test.
    assert not list((ROOT / "mlflow").rglob("*.py"))


def test_the_lock_holds_no_cuda_packages() -> None:
    # They come with the GPU build of torch; the lock serves the CPU build, too.
    assert not [name for name in pins() if re.match(r"nvidia|cuda|triton", name)]


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-cpu.lock"])
def test_every_pin_has_hashes(lock: str) -> None:
    found = entries(lock)
    lines = [line for line in read(lock).splitlines() if line[:1] not in "# "]
    assert len(found) == len(lines) > 0
    for name, _, rest in found:
        assert re.fullmatch(r"( \\\n    --hash=sha256:[0-9a-f]{64})+", rest), name


def test_the_cpu_builds_are_those_of_the_lock() -> None:
    cpu = {name: version for name, version, _ in entries("requirements-cpu.lock")}
    known = {name: str(version) for name, version in pins().items()}
    assert cpu == {"torch": f"{known['torch']}+cpu", "torchvision": known["torchvision"]}


def test_every_dependency_is_pinned_within_its_range() -> None:
    pinned = pins()
    wanted = [*project()["dependencies"]]
    for extra, requirements in project()["optional-dependencies"].items():
        if extra not in {"distributed", *APART}:
            wanted += requirements
    for requirement in map(Requirement, wanted):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in pinned, f"{name} is not in requirements.lock: make lock"
        assert requirement.specifier.contains(pinned[name]), f"{name} {pinned[name]}: make lock"


def test_the_server_image_has_the_version_of_the_lock() -> None:
    image = compose()["services"]["server"]["image"]
    assert image == f"ghcr.io/mlflow/mlflow:v{pins()['mlflow']}-full"


def test_the_readme_names_the_test_command_of_ci() -> None:
    (command,) = [line for line in read(".ci/run").splitlines() if "test" in line.split("#")[0]]
    assert command == "make test"
    assert re.search(rf"^\s*(\$ )?{command}\b|`{command}`", read("README.md"), re.M)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^(```|~~~).*?^\1", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    text = re.sub(r"`[^`\n]*`", "", text)
    targets = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        path, _, heading = target.partition("#")
        if re.match(r"\w+:", path):  # https:, mailto:
            continue
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{document.name}: {target}"
        assert file.is_relative_to(ROOT), f"{document.name}: {target} leaves the repository"
        if heading and file.suffix == ".md":
            assert heading in headings(file), f"{document.name}: {target}"


def headings(document: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def compose() -> dict[str, Any]:
    return yaml.safe_load(read("mlflow/compose.yaml"))


def test_the_compose_file_opens_ports_on_this_machine_only() -> None:
    ports = [
        port for service in compose()["services"].values() for port in service.get("ports", [])
    ]
    assert ports and all(str(port).startswith("127.0.0.1:") for port in ports)
    assert not [s for s in compose()["services"].values() if "network_mode" in s]


def test_the_compose_file_holds_no_secret() -> None:
    text = read("mlflow/compose.yaml")
    secrets = re.findall(r"^ *\w*(?:PASSWORD|SECRET|KEY|URI)\w*: *(.*)$", text, re.M)
    assert secrets
    assert not [value for value in secrets if value and "${MLFLOW_DB_PASSWORD:?" not in value]
    example = read("mlflow/.env.example")
    assert not re.search(r"^[^#\n]+=.+$", example, re.M)
    for name in set(re.findall(r"\$\{(\w+)", text)):
        assert re.search(rf"^#?{name}=", example, re.M), f"{name} is not in .env.example"
    assert ".env" in read("mlflow/.gitignore").split()


def test_the_compose_file_pins_images_and_checks_health() -> None:
    for name, service in compose()["services"].items():
        assert re.search(r":v?\d+\.\d+", service["image"]), f"{name}: {service['image']}"
        assert service["healthcheck"]["test"][0] == "CMD"


def test_the_deployments_run_the_flows() -> None:
    names = []
    for deployment in yaml.safe_load(read("prefect.yaml"))["deployments"]:
        file, _, function = deployment["entrypoint"].partition(":")
        assert (ROOT / file).is_file()
        flow = getattr(import_module(file.removesuffix(".py").replace("/", ".")), function)
        assert isinstance(flow, Flow)
        names.append(f"{flow.name}/{deployment['name']}")
    assert names == [
        *("dynammo/incremental", "dynammo/learn", "dynammo-forget/forget", "dynammo/watch"),
        *("dynammo/monitor", "dynammo-benchmark/grid"),
    ]


def test_make_lists_every_command() -> None:
    makefile = read("Makefile")
    (public,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    targets = re.findall(r"^([a-zA-Z][\w-]*):(?!=)", makefile, re.M)
    assert sorted(public.split()) == sorted(targets)
    command = ["make", "--no-print-directory", "help"]  # as if not run by another make
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    assert [(words[0], words[1]) for words in lines] == [("make", target) for target in targets]
    assert all(len(words) == 3 for words in lines)


def test_hooks_are_the_tools_of_the_environment() -> None:
    """Local ones only: nothing is downloaded, and versions are those of the lock."""
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"
    commands = [shlex.split(hook["entry"]) for hook in repository["hooks"]]
    assert [command[0] for command in commands] == [
        ".venv/bin/ruff",
        ".venv/bin/ruff",
        ".venv/bin/mypy",
        ".venv/bin/lint-imports",
    ]
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}


def test_the_citation_has_the_version_and_the_paper() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == dynammo.__version__
    assert citation["license"] == project()["license"]
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Qazi",
        "Almakky",
        "Hashmi",
        "Sanjeev",
        "Yaqub",
    ]
    assert "2404.14099" in str(paper["identifiers"])


def test_the_license_is_the_one_that_is_declared() -> None:
    assert project()["license"] == "Apache-2.0"
    assert re.search(r"Apache License\s+Version 2\.0, January 2004", read("LICENSE"))


def test_dvc_takes_notice_of_every_setting() -> None:
    """Its run cache leaves out parameters named "size", so the file itself must be a dependency."""
    (stage,) = yaml.safe_load(read("dvc.yaml"))["stages"].values()
    assert "params.yaml" in stage["deps"]


def test_every_import_is_of_a_declared_package() -> None:
    """The library's core is what dynammo/ imports outside `needs`; the pipeline is all the rest."""
    modules = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
    known = set(sys.stdlib_module_names) | {"dynammo", "tasks", "flows", "pydantic_core"}
    extras = project()["optional-dependencies"]
    allowed = [*project()["dependencies"]]
    allowed += [line for name in ("export", "dicom", "volumes", *APART) for line in extras[name]]
    for folders, more in ((["dynammo"], []), (["tasks", "flows"], ["pipeline", "distributed"])):
        for extra in more:
            allowed += extras[extra]
        names = {re.split(r"[\[<>=]", line)[0].lower() for line in allowed}
        packages = {modules.get(name, name.replace("-", "_")) for name in names}
        for file in (file for folder in folders for file in (ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    found = [node.module or ""]
                for name in found:
                    top = name.partition(".")[0]
                    assert top in known | packages, f"{file}: {name}"


def test_the_types_ship() -> None:
    assert (ROOT / "dynammo" / "py.typed").is_file()
    settings = tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]
    assert "py.typed" in settings["package-data"]["*"]


def test_the_lock_holds_every_extra_but_some() -> None:
    extras = set(project()["optional-dependencies"]) - {"distributed", *APART}
    assert set(re.findall(r"--extra (\w+)", read("scripts/lock.sh"))) == extras
