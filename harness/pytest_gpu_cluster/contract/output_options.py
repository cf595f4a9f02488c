"""Options of known plugins that write files: where each writes, and what that asks of the run.

A plugin is added by a row in OPTIONS. The client makes globs of the rows whose option is given; a
test process reads `one_process`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pytest_gpu_cluster.contract.frozen import dataclass


@dataclass(frozen=True, kw_only=True)
class OutputOption:
    """An option by which a plugin writes files.

    A path that begins with `./` is relative to the working directory and may be absolute behind it;
    another is a glob that holds anywhere in the tree. `{dest}` stands for the value of an option.
    """

    name: str  # as typed
    dest: str  # of argparse
    paths: tuple[str, ...]
    words: tuple[str, ...] = ()  # it writes for these values only; (): for any
    one_process: bool = False  # each process would write over what another has written


_BESIDE_TESTS = ("test_*/", "*_test/")  # pytest-datadir: a directory by the name of the module

OPTIONS = (
    # allure-pytest: a file of its own for each result
    OutputOption(name="--alluredir", dest="allure_report_dir", paths=("./{allure_report_dir}/**",)),
    # inline-snapshot: the test files themselves, and what is too big for them
    OutputOption(
        name="--inline-snapshot",
        dest="inline_snapshot",
        paths=("*.py", ".inline-snapshot/"),
        words=("create", "fix", "trim", "update"),
        one_process=True,
    ),
    # pytest-mpl
    *(
        OutputOption(
            name=name,
            dest=dest,
            paths=(f"./{{{dest}}}/**",),
            one_process=dest != "mpl_generate_path",
        )
        for name, dest in {
            "--mpl-generate-path": "mpl_generate_path",
            "--mpl-results-path": "mpl_results_path",
        }.items()
    ),
    # pytest-memray
    OutputOption(
        name="--memray-bin-path", dest="memray_bin_path", paths=("./{memray_bin_path}/**",)
    ),
    # pytest-profiling
    *(
        OutputOption(
            name=name, dest=dest, paths=("./prof/**", "./{pstats_dir}/**"), one_process=True
        )
        for name, dest in {"--profile": "profile", "--profile-svg": "profile_svg"}.items()
    ),
    # pytest-recording, pytest-vcr
    OutputOption(
        name="--record-mode",
        dest="record_mode",
        paths=("cassettes/",),
        words=("all", "any", "new_episodes", "once", "rewrite"),
    ),
    OutputOption(
        name="--vcr-record", dest="vcr_record", paths=("cassettes/",), words=("all", "new_episodes")
    ),
    # pytest-regressions
    OutputOption(name="--force-regen", dest="force_regen", paths=_BESIDE_TESTS),
    OutputOption(name="--regen-all", dest="regen_all", paths=_BESIDE_TESTS),
    # pytest-snapshot
    OutputOption(name="--snapshot-update", dest="snapshot_update", paths=("snapshots/",)),
    # syrupy: all snapshots of a file in one
    *(
        OutputOption(
            name=name, dest=dest, paths=("__snapshots__/", "{snapshot_dirname}/"), one_process=True
        )
        for name, dest in {
            "--snapshot-update": "update_snapshots",
            "--snapshot-update-new-only": "update_new_snapshots_only",
        }.items()
    ),
)


def given(options: Mapping[str, object]) -> Iterator[OutputOption]:
    """Yield the rows whose option is set among the values of argparse, by `dest`."""
    for each in OPTIONS:
        value = options.get(each.dest)
        if value and (not each.words or not _words(value).isdisjoint(each.words)):
            yield each


def _words(value: object) -> set[str]:
    """Return the words of an option that may have several, as a list or between commas."""
    texts = value if isinstance(value, list | tuple | set | frozenset) else [value]
    return {word for text in texts for word in str(text).split(",")}


def expanded(each: OutputOption, options: Mapping[str, object]) -> Iterator[str]:
    """Yield the paths of an option, with the values of other options in their places.

    One whose option has no value is left out, and one that is no path but a URL.
    """
    for path in each.paths:
        before, brace, rest = path.partition("{")
        dest, _, after = rest.partition("}")
        value = _path(options.get(dest)) if brace else ""
        if value or not brace:
            yield f"{before}{value}{after}"


def _path(value: object) -> str:
    """Return the path that an option holds: itself, the first of a list, behind `file://`."""
    if isinstance(value, list | tuple):
        value = value[0] if value else ""
    text = "" if value is None or isinstance(value, bool) else str(value)
    scheme, mark, path = text.partition("://")
    return text if not mark else path if scheme == "file" else ""
