"""Ray's Jobs REST API, as a client without Ray speaks it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

from pytest_gpu_cluster.contract.errors import HarnessError, InfrastructureError, RequestError
from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.contract.frozen import dataclass

if TYPE_CHECKING:
    import requests

TIMEOUT_S = 30.0
SHOWN_CHARS = 300  # of an answer that was not understood


class JobStatus(StrEnum):
    """Ray's words for the state of a job."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def is_terminal(self) -> bool:
        return self not in (JobStatus.PENDING, JobStatus.RUNNING)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as Ray's dashboard describes it."""

    id: str  # of its submission
    status: JobStatus
    message: str
    error: str  # Ray's JobErrorType; "" for none
    exit_code: int | None  # of the entrypoint
    started_ms: int
    metadata: Mapping[str, str]

    @classmethod
    def parse(cls, body: JsonObject) -> Job:
        """Raises KeyError, ValueError: it is not what Ray says of a job."""
        code = body.get("driver_exit_code")
        metadata = body.get("metadata")
        return cls(
            id=str(body["submission_id"]),
            status=JobStatus(str(body["status"])),
            message=str(body.get("message") or ""),
            error=str(body.get("error_type") or ""),
            exit_code=code if isinstance(code, int) else None,
            started_ms=int(str(body.get("start_time") or 0)),
            metadata=cast("dict[str, str]", metadata) if isinstance(metadata, dict) else {},
        )


class RayApi:
    """The dashboard at an address. Every method raises RequestError or InfrastructureError."""

    def __init__(self, address: str, *, token: str, headers: Mapping[str, str]) -> None:
        self.address = address.rstrip("/")
        self._headers = dict(headers)
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._has_token = bool(token)

    def version(self) -> str:
        """Return the version of Ray."""
        return str(self._json("GET", "/api/version").get("ray_version", ""))

    def has_package(self, name: str) -> bool:
        return self._send("GET", f"/api/packages/gcs/{name}", missing_ok=True).status_code == 200

    def put_package(self, name: str, content: bytes) -> None:
        self._send("PUT", f"/api/packages/gcs/{name}", data=content)

    def submit(self, request: JsonObject) -> None:
        self._send("POST", "/api/jobs/", json=request)

    def job(self, submission: str) -> Job | None:
        """Return a job; None for one that Ray does not know."""
        answer = self._send("GET", f"/api/jobs/{quote(submission)}", missing_ok=True)
        return None if answer.status_code == 404 else self._parsed(self._object(answer))

    def jobs(self) -> list[Job]:
        """Return the submitted jobs that Ray knows."""
        body = self._decoded(self._send("GET", "/api/jobs/"))
        if not isinstance(body, list):
            raise self._not_ray(str(body))
        return [self._parsed(each) for each in body if each.get("submission_id")]

    def log(self, submission: str) -> str:
        """Return what a job has printed."""
        return str(self._json("GET", f"/api/jobs/{quote(submission)}/logs").get("logs", ""))

    def stop(self, submission: str) -> None:
        """Have a job end; quiet for one that has ended, or that Ray does not know."""
        self._send("POST", f"/api/jobs/{quote(submission)}/stop", missing_ok=True)

    def _json(self, method: str, path: str) -> JsonObject:
        return self._object(self._send(method, path))

    def _object(self, answer: requests.Response) -> JsonObject:
        body = self._decoded(answer)
        if not isinstance(body, dict):
            raise self._not_ray(str(body))
        return body

    def _parsed(self, body: JsonObject) -> Job:
        try:
            return Job.parse(body)
        except (KeyError, ValueError) as problem:
            raise self._not_ray(f"{type(problem).__name__}: {problem}") from problem

    def _decoded(self, answer: requests.Response) -> object:
        try:
            return answer.json()
        except ValueError:
            raise self._not_ray(answer.text) from None

    def _send(
        self,
        method: str,
        path: str,
        *,
        json: JsonObject | None = None,
        data: bytes | None = None,
        missing_ok: bool = False,
    ) -> requests.Response:
        import requests

        try:
            answer = requests.request(
                method,
                self.address + path,
                headers=self._headers,
                json=json,
                data=data,
                timeout=TIMEOUT_S,
                allow_redirects=False,  # to a page for people, with a token that is not its own
            )
        except requests.exceptions.SSLError as problem:
            raise RequestError(
                f"the certificate of {self.address} is not trusted: {_last(problem)}",
                remedy="set REQUESTS_CA_BUNDLE to the file of the certificate authority",
            ) from problem
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as problem:
            raise RequestError(
                f"{self.address!r} is no address of a Ray dashboard",
                remedy='set [tool.gpu-cluster.ray] address, e.g. "http://head:8265"',
            ) from problem
        except requests.exceptions.RequestException as problem:
            raise InfrastructureError(
                f"nothing answers at {self.address}: {_last(problem)}",
                remedy="check [tool.gpu-cluster.ray] address, that the dashboard runs there,"
                " and the way to it",
            ) from problem
        if answer.status_code < 300 or (missing_ok and answer.status_code == 404):
            return answer
        raise self._refused(answer)

    def _refused(self, answer: requests.Response) -> HarnessError:
        code, text = answer.status_code, answer.text.strip()
        if code in (401, 403):
            how = "refuses the token" if self._has_token else "wants a token"
            return RequestError(
                f"{self.address} {how} (HTTP {code})",
                remedy="set RAY_AUTH_TOKEN, or name its variable as"
                " [tool.gpu-cluster.ray] token-env",
            )
        if code < 400 or "<html" in text[:500].lower():
            return self._not_ray(f"HTTP {code} {answer.headers.get('Location', '')} {text}")
        kind = RequestError if code < 500 else InfrastructureError
        return kind(
            f"Ray at {self.address} refused it (HTTP {code}):"
            f" {text.splitlines()[-1][-SHOWN_CHARS:] if text else ''}",
            remedy="look at the log of the dashboard",
        )

    def _not_ray(self, text: str) -> RequestError:
        words = " ".join(text.split())[:SHOWN_CHARS]
        return RequestError(
            f"{self.address} does not answer as a Ray dashboard does: {words}",
            remedy="give the address of the dashboard itself; for a proxy before it, its login"
            " goes into [tool.gpu-cluster.ray] headers",
        )


def _last(problem: Exception) -> str:
    """Return the innermost reason of a failed connection, which `requests` wraps three times."""
    reason: BaseException = problem
    while (inner := reason.__cause__ or reason.__context__) is not None:
        reason = inner
    return str(reason) or type(reason).__name__
