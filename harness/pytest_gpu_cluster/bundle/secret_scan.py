"""A scan of every file for credentials, before the file leaves the machine.

The rules prefer a known form to a guess, and skip documented examples and placeholders, because
false alarms get a check switched off. A user names a file that may travel in `allow-files`. No
message holds a credential's value.
"""

from __future__ import annotations

import re

SCANNED_BYTES = 1 << 20  # a bigger text file is judged by its name alone

_TEMPLATE = re.compile(r"\.env\.(.*[.-])?(example|sample|template|dist|defaults?)$")
_SSH_KEY = re.compile(r"id_(rsa|dsa|ecdsa|ed25519)([._-].*)?$")
_NOT_A_KEY = (".pub", ".py", ".md", ".txt", ".rst", ".sh", ".c", ".h", ".go", ".rs")
_BY_NAME = (
    (re.compile(r"(^|/)\.aws/credentials$"), "an AWS credentials file"),
    (re.compile(r"(^|/)(\.netrc|_netrc|\.pypirc|\.git-credentials)$"), "a file of logins"),
    (re.compile(r"\.(p12|pfx)$", re.IGNORECASE), "a container of private keys"),
    (re.compile(r"\.kdbx$", re.IGNORECASE), "a password database"),
    (re.compile(r"(^|/)(kaggle\.json|\.kaggle/access_token)$"), "a Kaggle key"),
    (re.compile(r"(^|/)\.databrickscfg$"), "a Databricks token"),
    (re.compile(r"(^|/)(\.cache/huggingface|\.huggingface)/token$"), "a Hugging Face token"),
    (
        re.compile(r"(^|/)[^/]*service[-_]account[^/]*\.json$", re.IGNORECASE),
        "a service account's key",
    ),
)
_SETTING = re.compile(
    rb"^[ \t]*(?:export[ \t]+)?[A-Za-z_]\w*[ \t]*=[ \t]*(?!#|''|\"\")\S", re.MULTILINE
)
_NPM_TOKEN = re.compile(rb"_authToken\s*=\s*(?!\$)\S")
_KEY_HEADER = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")
# Source code often has the header alone; a key has base64 after it, in whatever quoting.
_KEY = re.compile(
    _KEY_HEADER.pattern + rb"(?:\\[nr]|[\s\"'+,()]|[A-Za-z-]+: [^\n\\]*)*[A-Za-z0-9+/=]{16}"
)
_AWS_ID = re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")
_AWS_SECRET = re.compile(rb"(?<![A-Za-z0-9/+])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])")
_AWS_SETTING = re.compile(
    rb"aws_secret_access_key[\"']?\s*[=:]\s*[\"']?([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+])", re.I
)
_BESIDE = 200  # bytes between an AWS key id and its secret
# Each with plain bytes that are searched first: most files hold none of them, and a regular
# expression is slower.
_TOKENS = (
    *(
        (hint, re.compile(hint + rb"[A-Za-z0-9]{36}"), "a GitHub token")
        for hint in (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_")
    ),
    (b"github_pat_", re.compile(rb"github_pat_[A-Za-z0-9_]{40,}"), "a GitHub token"),
    (b"glpat-", re.compile(rb"glpat-[A-Za-z0-9_-]{20,}"), "a GitLab token"),
    (b"xox", re.compile(rb"xox[abprs]-[A-Za-z0-9]{8,}-[A-Za-z0-9-]{10,}"), "a Slack token"),
    (
        b"hooks.slack.com/",
        re.compile(
            rb"hooks\.slack\.com/(?:services|workflows|triggers)/"
            rb"(T[A-Za-z0-9_]+/[A-Za-z0-9_/]{24,})"
        ),
        "a Slack webhook",
    ),
    (b"hf_", re.compile(rb"\bhf_[A-Za-z0-9]{34}\b"), "a Hugging Face token"),
    (b"api_org_", re.compile(rb"\bapi_org_[A-Za-z0-9]{34}\b"), "a Hugging Face token"),
    (b"sk-ant-", re.compile(rb"\bsk-ant-[A-Za-z0-9]+-([A-Za-z0-9_-]{40,})"), "an Anthropic key"),
    # This mark is in the middle of every OpenAI key, old or new.
    (
        b"T3BlbkFJ",
        re.compile(rb"\bsk-(?:[a-z]+-)?[A-Za-z0-9_-]{20,}T3BlbkFJ([A-Za-z0-9_-]{20,})"),
        "an OpenAI key",
    ),
    (b"sk-", re.compile(rb"\bsk-(?:proj|svcacct|admin)-([A-Za-z0-9_-]{40,})"), "an OpenAI key"),
    (
        b"WANDB_API_KEY",
        re.compile(rb"WANDB_API_KEY[\"']?\]?\s*[=:]\s*[\"']?([0-9a-f]{40})\b"),
        "a Weights & Biases key",
    ),
    # Since 2025, beside the older one of 40 digits.
    (b"wandb_v1_", re.compile(rb"\bwandb_v1_([A-Za-z0-9_]{60,})"), "a Weights & Biases key"),
    (
        b"KAGGLE_KEY",
        re.compile(rb"KAGGLE_KEY[\"']?\]?\s*[=:]\s*[\"']?([0-9a-f]{32})\b"),
        "a Kaggle key",
    ),
    (b"KGAT_", re.compile(rb"\bKGAT_([0-9a-f]{32})\b"), "a Kaggle key"),
    (b"dapi", re.compile(rb"\bdapi([0-9a-f]{32})(?:-\d)?\b"), "a Databricks token"),
    (b"AIza", re.compile(rb"\bAIza([A-Za-z0-9_-]{35})(?![A-Za-z0-9_-])"), "a Google API key"),
    (
        b"AccountKey=",
        re.compile(rb"AccountKey=([A-Za-z0-9+/]{86}==)"),
        "an Azure storage key",
    ),
    (
        b"SharedAccessKey=",
        re.compile(rb"SharedAccessKey=([A-Za-z0-9+/]{40,}=)"),
        "an Azure access key",
    ),
    # Those for tests (sk_test_) open nothing.
    *(
        (hint, re.compile(rb"\b" + hint + rb"([A-Za-z0-9]{20,})"), "a Stripe key")
        for hint in (b"sk_live_", b"rk_live_")
    ),
    (b"npm_", re.compile(rb"\bnpm_([A-Za-z0-9]{36})\b"), "an npm token"),
    (b"pypi-AgE", re.compile(rb"\bpypi-AgE([A-Za-z0-9_-]{50,})"), "a PyPI token"),
    *(
        (hint, re.compile(rb"\b" + hint + rb"([0-9a-f]{64})\b"), "a DigitalOcean token")
        for hint in (b"dop_v1_", b"doo_v1_", b"dor_v1_")
    ),
)
# Of ~/.docker/config.json: base64 of user and password.
_DOCKER_AUTH = re.compile(rb"\"(?:auth|identitytoken)\"\s*:\s*\"([A-Za-z0-9+/=._-]{12,})\"")
# The key of Azurite, which Microsoft has published, stands in every example of its emulator.
_PUBLISHED = (b"Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq",)
_DISTINCT = 6  # a token of fewer different characters is a placeholder


def suspicion(path: str, content: bytes | None) -> str:
    """Return why the file at `path` looks like a credential, or "".

    `content` is None for a file that is binary or too big to read.
    """
    return _by_name(path, content) or ("" if content is None else _by_content(content))


def _by_name(path: str, content: bytes | None) -> str:
    name = path.rpartition("/")[2]
    if name == ".env" or (name.startswith(".env.") and not _TEMPLATE.match(name)):
        return (
            "a file of environment variables with values"
            if content is None or _SETTING.search(content)
            else ""
        )
    if name == ".npmrc":
        return "an npm token" if content is not None and _NPM_TOKEN.search(content) else ""
    if name.endswith((".pem", ".key")) and content is not None and _KEY_HEADER.search(content):
        return "a private key"
    if _SSH_KEY.match(name) and not name.endswith(_NOT_A_KEY):
        return "an SSH private key"
    return next((reason for pattern, reason in _BY_NAME if pattern.search(path)), "")


def _by_content(content: bytes) -> str:
    if b"PRIVATE KEY" in content and _KEY.search(content):
        return "a private key"
    if b"AKIA" in content or b"ASIA" in content:
        for key_id in filter(_is_real, _AWS_ID.finditer(content)):
            around = content[max(0, key_id.start() - _BESIDE) : key_id.end() + _BESIDE]
            if any(map(_is_real, _AWS_SECRET.finditer(around))):
                return "an AWS key with its secret"
    named = b"_secret_access_key" in content or b"_SECRET_ACCESS_KEY" in content
    if named and any(map(_is_real, _AWS_SETTING.finditer(content))):
        return "an AWS secret key"
    if b'"auths"' in content and any(map(_is_real, _DOCKER_AUTH.finditer(content))):
        return "a login of a Docker registry"
    for hint, pattern, reason in _TOKENS:
        if hint in content and any(map(_is_real, pattern.finditer(content))):
            return reason
    return ""


def _is_real(match: re.Match[bytes]) -> bool:
    """Return False for examples of the documentation, and placeholders such as `ghp_xxxx…`."""
    token = match[match.lastindex or 0]
    return (
        b"EXAMPLE" not in token.upper()
        and not any(key in token for key in _PUBLISHED)
        and len(set(re.split(rb"[-_]", token, maxsplit=1)[-1])) >= _DISTINCT
    )
