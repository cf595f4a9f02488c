"""The keys of `[tool.gpu-cluster]` and of its providers' tables."""

from __future__ import annotations

import re

from pytest_gpu_cluster.contract.ids import ID
from pytest_gpu_cluster.providers import REGISTRY, provider_class, provider_target
from pytest_gpu_cluster.settings_keys import (
    PREFIX,
    Key,
    flag,
    is_inside,
    matching,
    number,
    number_from_text,
    one_of,
    read_text,
    strings,
    suggest,
    whole,
)

_SCHEMES = ("file", "s3", "gs", "az")


class KeyTable(dict[str, Key]):
    """The keys of all settings by name: this package's, and `<provider>.<key>` of providers.

    It has the providers of the registry. One from outside is added when a table or the setting
    `provider` names it: only then its package is imported.
    """

    def __init__(self) -> None:
        super().__init__(_base_keys())
        self.providers: set[str] = set()
        for name in REGISTRY:
            self.add_provider(name)

    def add_provider(self, name: str) -> None:
        """Add the keys of a provider's table. Raises RequestError when it cannot be loaded."""
        if name not in self.providers:
            self.providers.add(name)
            self.update(
                {f"{name}.{key}": value for key, value in provider_class(name).keys.items()}
            )

    def add_if_provider(self, name: object) -> bool:
        """Add the keys of provider `name`. Return False if there is no such provider."""
        if not isinstance(name, str) or (name not in self.providers and not provider_target(name)):
            return False
        self.add_provider(name)
        return True

    @property
    def variables(self) -> dict[str, str]:
        """The name of each key, by its environment variable."""
        return {PREFIX + re.sub(r"\W", "_", name).upper(): name for name in self}


def _base_keys() -> dict[str, Key]:
    globs = "a list of globs relative to this file, which may begin with ../"
    named = " or ".join(f'"{name}"' for name in REGISTRY)
    return {
        "provider": Key(expected=f'{named} or "package.module:Class"', read=_read_provider),
        "store": Key(
            expected="a path, file:///path, s3://bucket/prefix, gs://bucket/prefix"
            " or az://container/prefix",
            read=_read_store,
        ),
        "nodes": whole(1),
        "gpus-per-node": Key(
            expected='"auto" or a whole number, 0 or more',
            read=lambda value: value if value == "auto" else whole(0).read(value),
            from_text=number_from_text,
        ),
        "simulated-gpus": whole(0),
        "default-gpus": Key(
            expected="a number from 0 to 1, or a whole number",
            read=_read_default_gpus,
            from_text=number_from_text,
        ),
        "distribute": one_of("auto", "test", "class", "module", "file", "group"),
        "test-timeout-s": number(zero=False),
        "max-minutes": number(zero=False),
        "idle-minutes": number(zero=True),
        "infra-retries": whole(0),
        "require-gpu": flag(),
        "pass-env": strings("a list of names or patterns of environment variables"),
        "secret-env": strings("a list of names or patterns of environment variables"),
        "tree": one_of("project", "git"),
        "include": strings(globs, relative=True),
        "exclude": strings(globs, relative=True),
        "allow-files": strings(globs, relative=True),
        "git": flag(),
        "outputs": strings(globs, relative=True),
        "keep-sessions": whole(1),
        "publish": flag(),
        "suite": matching(ID, expected="a name of letters, digits, '.', '_' and '-', at most 80"),
        "public-url": matching(
            r"(?:https?://[^\s?#@{}\"<>]+)?", expected="an http:// or https:// URL without a query"
        ),
        "comment": one_of("always", "changes", "failures", "off"),
        "check-run": flag(),
        "results-dir": Key(
            expected="a directory relative to the project and inside it",
            read=_read_results_dir,
        ),
        "junit-strict": flag(),
    }


def _read_default_gpus(value: object) -> object:
    gpus = number(zero=True).read(value)
    if isinstance(gpus, float) and gpus > 1 and not gpus.is_integer():
        raise ValueError
    return gpus


def _read_results_dir(value: object) -> object:
    path = read_text(value)
    if not is_inside(path):
        raise ValueError
    return path


def _read_provider(value: object) -> object:
    name = read_text(value)
    if provider_target(name) is None:
        raise ValueError(suggest(name, REGISTRY))
    return name


def _read_store(value: object) -> object:
    scheme, is_url, rest = read_text(value).partition("://")
    if slip := re.match(rf"({'|'.join(_SCHEMES)}):/*", scheme):
        raise ValueError(f"did you mean {slip[1]}://{scheme[slip.end() :]}?")
    if is_url and scheme not in _SCHEMES:
        raise ValueError(suggest(scheme, _SCHEMES))
    if is_url and (not rest.startswith("/") if scheme == "file" else not rest.partition("/")[0]):
        raise ValueError
    if not value:
        raise ValueError
    return value
