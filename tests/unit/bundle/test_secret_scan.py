"""A working tree takes no secret along, and no checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_gpu_cluster.bundle.ship import ship
from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.store import Store
from tests.working_trees import write


def test_a_tree_over_the_limit_is_refused_with_its_biggest_files(root: Path, store: Store) -> None:
    """Nobody means to upload a checkpoint at every run."""
    write(root, {"model.ckpt": b"\0" * 3_000_000, "a.py": "", "b.bin": b"\0" * 2_000_000})

    with pytest.raises(RequestError, match=r"4\.8 MiB, over the limit of 1\.0 MiB") as caught:
        ship(store, root, limit_bytes=1 << 20)

    assert caught.value.what.index("model.ckpt") < caught.value.what.index("b.bin")
    assert "exclude" in caught.value.remedy
    assert store.list("blobs/") == []
    assert ship(store, root, exclude=["*.ckpt", "*.bin"], limit_bytes=1 << 20).files == 1


def body(length: int, alphabet: str = "aB3dE5gH7jK9") -> str:
    """Return what looks like a secret and is none; made here, for this file may not hold one."""
    return "".join(
        alphabet[n * n % len(alphabet)] + alphabet[n % len(alphabet)] for n in range(length)
    )[:length]


HEX = "0123456789abcdef"
PEM = (
    "-----BEGIN {}PRIVATE KEY-----\n"
    + body(64)
    + "\n"
    + body(64)
    + "\n-----END {}PRIVATE KEY-----\n"
)
AWS_ID = "AKIA" + body(16, "A2B3C4D5E6F7")
SUSPECTS: dict[str, tuple[str, str]] = {
    ".env": ("DEBUG=1\n", "environment variables"),
    "deploy/.env.production": ("# x\nexport KEY='v'\n", "environment variables"),
    "server.pem": (PEM.format("", ""), "a private key"),
    "tls.key": (PEM.format("EC ", "EC "), "a private key"),
    "keys/id_rsa": ("anything", "an SSH private key"),
    "keys/id_ed25519_work": ("anything", "an SSH private key"),
    "cert.p12": ("\0", "private keys"),
    "cert.PFX": ("\0", "private keys"),
    "passwords.kdbx": ("\0", "a password database"),
    ".aws/credentials": ("[default]\n", "an AWS credentials file"),
    "home/.netrc": ("", "a file of logins"),
    ".pypirc": ("", "a file of logins"),
    ".npmrc": ("//registry.npmjs.org/:_authToken=npm_x\n", "an npm token"),
    "my-service-account-prod.json": ("{}", "a service account's key"),
    "notes.txt": ("x\n" + PEM.format("OPENSSH ", "OPENSSH "), "a private key"),
    "quoted.py": ('KEY = """' + PEM.format("RSA ", "RSA ") + '"""', "a private key"),
    "gcp.json": (json.dumps({"private_key": PEM.format("", "")}), "a private key"),
    "config.ini": (f"id = {AWS_ID}\nsecret = {body(40)}\n", "an AWS key with its secret"),
    "setup.sh": (f"export AWS_SECRET_ACCESS_KEY={body(40)}\n", "an AWS secret key"),
    "boto.cfg": (f"aws_secret_access_key = {body(40)}\n", "an AWS secret key"),
    "a.yml": (f"token: ghp_{body(36)}\n", "a GitHub token"),
    "b.yml": (f"token: github_pat_{body(22)}_{body(59)}\n", "a GitHub token"),
    "c.yml": (f"token: glpat-{body(20)}\n", "a GitLab token"),
    "d.yml": (f"token: xoxb-{body(12, '0123456789')}-{body(24)}\n", "a Slack token"),
    "e.yml": (f"token: hf_{body(34)}\n", "a Hugging Face token"),
    "f.yml": (f"key: sk-ant-api03-{body(80)}\n", "an Anthropic key"),
    "g.yml": (f"key: sk-{body(20)}T3BlbkFJ{body(20)}\n", "an OpenAI key"),
    "h.yml": (f"key: sk-proj-{body(74)}\n", "an OpenAI key"),
    "i.sh": (f"export WANDB_API_KEY={body(40, '0123456789abcdef')}\n", "a Weights & Biases key"),
    "j.sh": (f"export KAGGLE_KEY='{body(32, '0123456789abcdef')}'\n", "a Kaggle key"),
    "k.yml": (f"key: wandb_v1_{body(22)}_{body(54)}\n", "a Weights & Biases key"),
    "l.sh": (f"export KAGGLE_API_TOKEN=KGAT_{body(32, HEX)}\n", "a Kaggle key"),
    "m.py": (f"HOST, TOKEN = 'dbc', 'dapi{body(32, HEX)}'\n", "a Databricks token"),
    "n.js": (f'apiKey: "AIza{body(35)}",\n', "a Google API key"),
    "o.env.txt": (f"X=AccountName=a;AccountKey={body(86)}==;Endpoint=b\n", "an Azure storage key"),
    "p.txt": (f"Endpoint=sb://a/;SharedAccessKey={body(43)}=\n", "an Azure access key"),
    "q.yml": (f"url: https://hooks.slack.com/services/T{body(8)}/B{body(8)}/{body(24)}\n", "Slack"),
    "r.rb": (f"Stripe.api_key = 'sk_live_{body(24)}'\n", "a Stripe key"),
    "s.yml": (f"NODE_AUTH: npm_{body(36)}\n", "an npm token"),
    "t.cfg": (f"password = pypi-AgEIcHlwaS5vcmc{body(80)}\n", "a PyPI token"),
    "u.tf": (f'token = "dop_v1_{body(64, HEX)}"\n', "a DigitalOcean token"),
    ".docker/config.json": ('{"auths": {"r.io": {"auth": "dXNlcjpwYXNzd29yZDEy"}}}', "Docker"),
    "v.yml": (f"key: api_org_{body(34)}\n", "a Hugging Face token"),
    ".databrickscfg": ("[DEFAULT]\n", "a Databricks token"),
    ".kaggle/kaggle.json": ('{"username": "u", "key": "k"}', "a Kaggle key"),
}


@pytest.mark.parametrize("path", SUSPECTS)
def test_a_credential_is_refused_by_name_and_reason(root: Path, store: Store, path: str) -> None:
    """A bucket is read by more people than a laptop; the refusal must not repeat the value."""
    content, reason = SUSPECTS[path]
    write(root, {"a.py": "", path: content})

    with pytest.raises(RequestError) as caught:
        ship(store, root)

    assert f"{path!r}: " in caught.value.what
    assert reason in caught.value.what
    assert f'allow-files = ["{path}"]' in caught.value.remedy
    assert not [word for word in content.split() if len(word) > 20 and word in str(caught.value)]
    assert store.list("blobs/") == []
    assert ship(store, root, allow_files=[path]).files == 2
    assert ship(store, root, exclude=[path]).files == 1


AZURITE = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
HARMLESS = {
    "azurite.py": f"C = 'AccountName=devstoreaccount1;AccountKey={AZURITE};'\n",
    "stripe.md": f"Stripe.api_key = 'sk_test_{body(24)}' or 'sk_live_{'x' * 24}'\n",
    "slack.md": "https://hooks.slack.com/services/T00000000/B00000000/" + "X" * 24 + "\n",
    "docker.md": '{"auths": {"registry.example.com": {"auth": "..."}}, "credsStore": "desktop"}\n',
    "npm.md": "export NPM_TOKEN=npm_" + "x" * 36 + " # and dapi" + "0" * 32 + "\n",
    "google.md": "AIza" + "x" * 35 + " or AIzaSyExample\n",
    "names.py": "wandb_v1_client = KGAT_PREFIX = npm_config_registry = dop_v1_x = None\n",
    ".env": "# nothing set\nAPI_KEY=\nOTHER=''\n",
    ".env.example": "API_KEY=your-key-here\nPORT=8080\n",
    "prod/.env.local.sample": "API_KEY=x\n",
    ".envrc": "use flake\n",
    "ca.pem": "-----BEGIN CERTIFICATE-----\n" + body(64) + "\n-----END CERTIFICATE-----\n",
    "public.pem": "-----BEGIN PUBLIC KEY-----\n" + body(64) + "\n-----END PUBLIC KEY-----\n",
    "id_rsa.pub": "ssh-rsa " + body(64),
    "id_rsa_tools.py": "def parse(): ...\n",
    ".npmrc": "//registry.npmjs.org/:_authToken=${NPM_TOKEN}\nsave-exact=true\n",
    "credentials": "a chapter",
    "credentials.py": "AWS_SECRET_ACCESS_KEY = os.environ['AWS_SECRET_ACCESS_KEY']\n",
    "scanner.py": (
        "MARK = '-----BEGIN RSA PRIVATE KEY-----'\nif MARK in text:\n    raise ValueError(text)\n"
    ),
    "test_moto.py": (
        "os.environ['AWS_SECRET_ACCESS_KEY'] = 'testing'\nKEY = 'AKIAIOSFODNN7EXAMPLE'\n"
    ),
    "readme.md": (
        "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\nAKIAIOSFODNN7EXAMPLE\n"
    ),
    "usage.md": "export GITHUB_TOKEN=ghp_" + "x" * 36 + "\n",
    "lock.json": f'"integrity": "sha512-{body(86)}==", "sha1": "{body(40)}"\n',
    "id_only.py": f"ACCOUNT_KEY = '{AWS_ID}'\n",
    "openai.md": f"export OPENAI_API_KEY=sk-proj-{'x' * 60}\nWANDB_API_KEY={'0' * 40}\n",
    "cli.py": "parser.add_argument('--task-kind', help='risk-proj-name, disk-admin-tool')\n",
}


def test_the_remedy_names_each_file_that_is_refused(root: Path, store: Store) -> None:
    """It is pasted once, not once for each file."""
    write(root, {".env": "A=1\n", "b/.env": "A=1\n"})

    with pytest.raises(RequestError) as caught:
        ship(store, root)

    assert 'allow-files = [".env", "b/.env"]' in caught.value.remedy


def test_what_only_resembles_a_credential_may_travel(root: Path, store: Store) -> None:
    """A check that cries wolf gets switched off."""
    write(root, HARMLESS)

    assert ship(store, root).files == len(HARMLESS)


def test_a_credential_behind_an_outside_link_is_seen(
    root: Path, store: Store, tmp_path: Path
) -> None:
    """The link has a harmless name; its content would travel in its place."""
    write(tmp_path, {".aws/credentials": "[default]\n"})
    (root / "config").symlink_to(tmp_path / ".aws" / "credentials")

    with pytest.raises(RequestError, match="'config': an AWS credentials file"):
        ship(store, root)


def test_a_verdict_is_remembered_with_the_digest(root: Path, store: Store, at_once: None) -> None:
    """An unchanged file is not scanned again, yet allow-files may be taken back."""
    write(root, {"tests/key.pem": PEM.format("", "")})
    ship(store, root, allow_files=["tests/*.pem"])

    with pytest.raises(RequestError, match="a private key"):
        ship(store, root)
