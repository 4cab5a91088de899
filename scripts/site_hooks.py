"""Hooks of mkdocs.yml: files outside docs/ that pages link to, and references made from the code.

Pages link to other files of the repository by relative paths, which work in an editor and on a
code host. In the site each such file is a page below `repository/`, or is copied there as data.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)[^)\s#]+")
_OUTSIDE = "repository/"
_CODE = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".toml": "toml"}


def _target(page: str, link: str) -> str:
    """What a link of a page of the site means, as a path in the repository."""
    source = page.removeprefix(_OUTSIDE) if page.startswith(_OUTSIDE) else f"docs/{page}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _uri(path: str) -> str:
    """Where the site has a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{_OUTSIDE}{path}.md" if Path(path).suffix in _CODE else f"{_OUTSIDE}{path}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to, and those that these link to."""
    waiting = [file for file in files if file.is_documentation_page()]
    while waiting:
        page = waiting.pop()
        for link in _LINK.findall(page.content_string):
            path = _target(page.src_uri, link)
            uri, source = _uri(path), ROOT / path
            if path.startswith(("docs/", "../")) or not source.is_file() or files.src_uris.get(uri):
                continue  # what cannot be found mkdocs reports
            if language := _CODE.get(source.suffix):
                text = f"# {path}\n\n````{language}\n{source.read_text('utf-8')}````\n"
                files.append(File.generated(config, uri, content=text))
            else:
                files.append(File.generated(config, uri, abs_src_path=str(source)))
                if source.suffix == ".md":
                    waiting.append(files.src_uris[uri])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links to where the site has the files; write the commands' help."""
    here = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        uri = _uri(_target(here, match[0]))
        return (
            posixpath.relpath(uri, posixpath.dirname(here)) if uri in files.src_uris else match[0]
        )

    if not here.endswith(tuple(f"{ending}.md" for ending in _CODE)):
        markdown = _LINK.sub(moved, markdown)
    for marker, made in {"<!-- commands -->": _commands, "<!-- methods -->": _methods}.items():
        if marker in markdown:
            markdown = markdown.replace(marker, made())
    return markdown


def _commands() -> str:
    """The help of every command, as Markdown."""
    from flows.cli import app

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="dynammo")
    return get_docs_for_click(obj=command, ctx=context, name="dynammo", indent=1)


def _methods() -> str:
    """A table of all methods and their own options."""
    from dynammo.methods import METHODS
    from dynammo.methods.base import Method, own_options

    lines = ["| name | what | source | memory | options (default) |", "|---|---|---|---|---|"]
    for name in METHODS:
        method = METHODS[name]
        own = own_options(method) if issubclass(method, Method) else {}
        options = ", ".join(f"`{option}` ({value})" for option, value in own.items())
        about = method.about
        lines.append(
            f"| `{name}` | {about.meaning} | {about.source} | {about.memory} | {options} |"
        )
    return "\n".join(lines)
