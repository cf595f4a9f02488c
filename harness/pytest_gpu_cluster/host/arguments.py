"""Arguments that the pytest on the cluster is certain to refuse are refused before it starts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from _pytest import hookspec

from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.settings import RunRequest

# What a conftest.py needs to define an option, or to bring one from elsewhere.
_DEFINES = re.compile(r"addoption|pytest_plugins|import\s*\(?\s*\*|exec\(|globals\(")
_HOOK = re.compile(r"def (pytest_\w+)")
# Hooks of pytest's own that are called before the options are known. A plugin's own hooks may ask a
# conftest for options, as that of pytest-logger.
_EARLY = {
    *("pytest_addhooks", "pytest_plugin_registered", "pytest_cmdline_parse"),
    "pytest_load_initial_conftests",
}
_LATE = {name for name in vars(hookspec) if name.startswith("pytest_")} - _EARLY


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line with addopts, as the local pytest understands it without conftest files."""

    words: tuple[str, ...]
    unknown: tuple[str, ...]  # options that a conftest may define
    paths: tuple[str, ...]  # those that cannot be values of unknown options


ARGUMENTS: pytest.StashKey[Arguments] = pytest.StashKey()


def read(parser: pytest.Parser, words: Sequence[str]) -> Arguments:
    """Tell the options that nobody here knows from those that are known, and from paths.

    An unknown option may take the words after it, up to the next option.
    """
    unknown = parser.parse_known_and_unknown_args(list(words))[1]
    certain: list[str] = []
    taken = False
    for word in words:
        if word.startswith("-"):
            taken = word in unknown and "=" not in word
        if word not in unknown and not taken:
            certain.append(word)
    known = parser.parse_known_and_unknown_args(certain)[0]
    return Arguments(words=tuple(words), unknown=tuple(unknown), paths=tuple(known.file_or_dir))


def refuse_wrong(config: pytest.Config, request: RunRequest) -> None:
    """Raise RequestError for a path that does not exist, or an option that nothing defines.

    In doubt the cluster decides: a conftest.py may create a file, or define an option; and another
    interpreter may have other plugins.
    """
    arguments = config.stash.get(ARGUMENTS, None)
    if arguments is None:
        return
    missing = [] if config.option.pyargs else list(_missing(arguments.paths, request))
    if not missing and not arguments.unknown:
        return
    conftests = list(_conftests(config, arguments.words))
    for word in missing:
        name = Path(word.partition("::")[0]).stem
        if not any(name in text for text in conftests):
            raise RequestError(
                f"file or directory not found: {word}",
                remedy=f"correct it; it was looked for in {request.invocation_dir}",
            )
    same = request.settings.provider == "local" and not request.settings.provider_settings
    if arguments.unknown and same and not any(map(_may_define, conftests)):
        raise RequestError(
            f"unrecognized arguments: {' '.join(arguments.unknown)}",
            remedy="correct it; no plugin that is installed and no conftest.py defines it",
        )


def _may_define(conftest: str) -> bool:
    return bool(_DEFINES.search(conftest) or {*_HOOK.findall(conftest)} - _LATE)


def _missing(paths: Iterable[str], request: RunRequest) -> Iterator[str]:
    """Yield the paths inside of the tree that do not exist. Others may exist on the nodes alone."""
    for word in paths:
        name = word.partition("[")[0].partition("::")[0]
        path = Path(os.path.normpath(request.invocation_dir / name))
        if path.is_relative_to(request.tree.top) and not os.path.exists(path):
            yield word


def _conftests(config: pytest.Config, words: Iterable[str]) -> Iterator[str]:
    """Yield the text of each conftest.py that pytest may load before it reads the command line.

    They lie in and above the directories that are named, and in their directories `test*`.
    """
    here = config.invocation_params.dir
    anchors = {here, config.rootpath, *(here / word.partition("::")[0] for word in words)}
    for pattern in config.getini("testpaths"):
        anchors |= {*config.rootpath.glob(pattern.lstrip("/") or ".")}
    folders = {above for anchor in anchors for above in (anchor, *anchor.parents)}
    folders |= {inner for anchor in anchors if anchor.is_dir() for inner in anchor.glob("test*")}
    for folder in sorted(folders):
        path = folder / "conftest.py"
        if path.is_file():
            yield path.read_text(encoding="utf-8", errors="replace")
