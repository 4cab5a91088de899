"""What is known about a data set, for `dynammo datasets`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from dynammo.data import DATA_SOURCES


@dataclass(frozen=True)
class About:
    """A data source describes itself in a constant `ABOUT` of its module.

    Attributes:
        title: what it is, in a few words.
        source: where it comes from: an address, or a package.
        licence: under which the images may be used.
        size: number of images.
        classes: number of classes, and which.
        citation: what to cite.
        protocol: the published protocol of class-incremental learning, and the file that runs it.
        layout: what `data.path` must hold, or what is fetched into it.
        options: what `data.options` may hold; empty: nothing.
        written: whether the source itself writes `data.path`, so that `dynammo export` can.
    """

    title: str
    source: str = "not stated"
    licence: str = "not stated"
    size: str = "not stated"
    classes: str = "not stated"
    citation: str = "not stated"
    protocol: str = "not stated"
    layout: str = "not stated"
    options: str = ""
    written: bool = False


def about(name: str) -> About:
    """The description of a data source; one without `ABOUT` is described by its docstring.

    Raises:
        ConfigError: there is no source of that name.
    """
    module = import_module(DATA_SOURCES.module(name))
    found = getattr(module, "ABOUT", None)
    if isinstance(found, About):
        return found
    title = (module.__doc__ or "").strip().partition("\n")[0] or "no description"
    return About(title)


def written_sources() -> list[str]:
    """Names of the sources that write their own folder."""
    return [name for name in sorted(DATA_SOURCES) if about(name).written]
