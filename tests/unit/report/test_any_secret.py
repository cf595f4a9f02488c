"""What holds for masking any secret in any text."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

from hypothesis import example, given
from hypothesis import strategies as st

from pytest_gpu_cluster.contract.masking import masker
from pytest_gpu_cluster.contract.secret_values import secrets_among
from pytest_gpu_cluster.report import junit
from pytest_gpu_cluster.report.model import Report
from tests.unit.report.strategies import SLOW, TEXT, reports

SECRET_NAMES = st.sampled_from(
    [
        "GITHUB_TOKEN",
        "DB_PASSWORD",
        "api_key",
        "AWS_SECRET_ACCESS_KEY",
        "AZURE_STORAGE_KEY",
        "X_PASSPHRASE",
        "SENTRY_DSN",
        "MY_PAT",
        "HTTP_AUTH",
    ]
)
PATHS = ("/", "http://", "https://", "file:", "s3://")
SECRETS = st.text(
    st.characters(codec=None, exclude_characters="*"), min_size=8, max_size=40
).filter(
    lambda value: (
        len(value.strip()) >= 8
        and len(set(value.strip())) >= 4
        and not value.strip().startswith(PATHS)
    )
)
ENVIRONS = st.dictionaries(
    SECRET_NAMES,
    SECRETS | st.lists(SECRETS, min_size=2, max_size=3).map("\n".join),
    min_size=1,
    max_size=4,
)


@given(ENVIRONS, st.data())
@SLOW
def test_a_masked_text_has_no_secret_in_it(environ: Mapping[str, str], data: st.DataObject) -> None:
    """It does not matter how the text is put together.

    One secret after another, within a word, in two variables, with several lines. A word or a
    repeat is masked where it stands by itself: `tests/security/test_masking.py` has that.
    """
    parts = data.draw(
        st.lists(
            st.sampled_from(sorted(environ.values())) | st.text(max_size=5), min_size=1, max_size=8
        )
    )
    masked = masker(environ)("".join(parts))

    weak = {secret.value for secret in secrets_among(environ.items()) if secret.whole}
    strong = [value for value in environ.values() if value.strip() not in weak]
    assert not [value for value in strong if value in masked]


KEYS = st.text(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", min_size=40, max_size=40
).filter(
    lambda key: (
        len(set(key)) >= 16
        and re.search("[0-9]", key)
        and re.search("[A-Z]", key)
        and re.search("[a-z]", key)
    )
)


@given(KEYS)
@example("/" + "Zk3xE8wLr5Tn2Yc6Gd9Hk4Mp7Qs1Uz0Jb3xE8wL")
@SLOW
def test_a_key_in_base64_is_masked_whatever_it_begins_with(key: str) -> None:
    """A secret key of AWS, a storage key of Azure.

    Both are random, and any of 64 characters may be the first.
    """
    assert key not in masker({"AWS_SECRET_ACCESS_KEY": key})(f"signed with {key}.")


@given(ENVIRONS, TEXT)
@SLOW
def test_masking_changes_nothing_else(environ: Mapping[str, str], text: str) -> None:
    """Masked twice is masked once, and a text without a secret stays as it is."""
    mask = masker(environ)

    assert mask(mask(text)) == mask(text)
    assert mask(text) == text or "***" in mask(text)


@given(reports(TEXT), SECRETS, st.booleans())
@SLOW
def test_a_masked_report_makes_a_valid_file(report: Report, secret: str, strict: bool) -> None:
    """A secret may look like a tag, or half of one."""
    mask = masker({"A_TOKEN": secret})
    results = [
        dataclasses.replace(
            result, name=mask(f"test_{secret}_{result.name}"), output=mask(secret * 2)
        )
        for result in report.results
    ]
    root = ET.fromstring(
        junit.write(dataclasses.replace(report, results=tuple(results)), strict=strict)
    )

    assert len(
        {(case.get("classname"), case.get("name")) for case in root.iter("testcase")}
    ) == len(list(root.iter("testcase")))
