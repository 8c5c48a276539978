"""A client of the service: lists as iterators, records as in `safe_sail.records`, jobs to ask for, follow and wait for.

1. `Client` speaks HTTP to one service. A key comes by argument, or from `SAFE_SAIL_KEY` in the environment.
2. A list is asked for page by page as it is walked along, by the `Link` that each page carries.
3. An RFC 9457 problem becomes `ServiceProblem` with the problem's fields; a 429 is waited for and asked again.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import TypeAdapter

from safe_sail.client.answers import (
    FeatureInfo,
    FeatureSummary,
    ImportSummary,
    SaeInfo,
    import_summary,
    read,
    sae_info,
)
from safe_sail.errors import BadInput, JobConflict, ServiceProblem, ServiceUnreachable
from safe_sail.records import (
    Concept,
    Job,
    JobEvent,
    ModelRef,
    RunInfo,
)

T = TypeVar("T")
_PATIENCE = 5
"""How often a request that came too early, or an event stream that broke off, is tried again."""
_LONGEST_PAUSE = 60.0


# --------------------------------------------------------------------------------------------- the client


class Client:
    """One service; close it, or use it in a `with` block. Not for several threads at once."""

    def __init__(
        self, address: str = "http://127.0.0.1:8420", *, key: str | None = None, seconds: float = 90.0
    ) -> None:
        """`seconds` is how long an answer may take to begin; the service gives up after 60 unless told otherwise.

        Raises:
            BadInput: the address is none.
        """
        key = key or os.environ.get("SAFE_SAIL_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if not re.fullmatch(r"https?://[^/?#\s]+[^?#\s]*", address):
            raise BadInput(f"an address as http://127.0.0.1:8420 is expected; got {address!r}.")
        self._http = httpx2.Client(base_url=address, headers=headers, timeout=seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    # ------------------------------------------------------------------------------------- any address

    def get(self, path: str, **parameters: Any) -> Any:
        """The JSON at any address, as `/v1/circuits/refusal-1`.

        Raises:
            ServiceProblem: the service refuses.
            ServiceUnreachable: nothing answers.
        """
        return self._ask("GET", path, params=_given(parameters)).json()

    def items(self, path: str, **parameters: Any) -> Iterator[Any]:
        """The items of any list, asked for page by page.

        Raises:
            ServiceProblem, ServiceUnreachable: as `get`.
        """
        answer = self._ask("GET", path, params=_given(parameters))
        while True:
            yield from answer.json()["items"]
            following = answer.links.get("next")
            if following is None:
                return
            answer = self._ask("GET", following["url"])

    # ------------------------------------------------------------------------------------- models, SAEs, features

    def models(self) -> Iterator[ModelRef]:
        """Models, by id."""
        return (read(ModelRef, one["record"]) for one in self.items("/v1/models"))

    def saes(self, *, model: str | None = None, concept: str | None = None, sort: str = "slug") -> Iterator[SaeInfo]:
        """SAEs with facts and scores, in the order asked for."""
        return (sae_info(one) for one in self.items("/v1/saes", model=model, concept=concept, sort=sort))

    def sae(self, slug: str) -> SaeInfo:
        """One SAE."""
        return sae_info(self.get(f"/v1/saes/{_part(slug)}"))

    def features(self, sae: str, **filters: Any) -> Iterator[FeatureSummary]:
        """Features of an SAE; filters and order by the names that the service documents, as `concept`, `q`, `sort`."""
        found = self.items(f"/v1/saes/{_part(sae)}/features", **({"limit": 200} | filters))
        return (read(FeatureSummary, one) for one in found)

    def feature(self, sae: str, index: int) -> FeatureInfo:
        """Everything that is known of one feature."""
        found = self.get(f"/v1/saes/{_part(sae)}/features/{index}")
        told = found["explanations"]
        return read(  # type: ignore[no-any-return]
            FeatureInfo,
            found
            | {
                "concept_scores": [one["record"] for one in found["concept_scores"]],
                "explanations": [one["explanation"]["record"] for one in told],
                "explanation_scores": [score["record"] for one in told for score in one["scores"]],
            },
        )

    def export(
        self, sae: str, *, explained: bool | None = None, form: Literal["ndjson", "portable"] = "ndjson"
    ) -> Iterator[str]:
        """Lines of JSON, one for each feature of which anything is known, as the service streams them.

        `portable` puts lines of the runs, the model and the concepts that they refer to before them: `import_lines`
        takes these.

        Raises:
            ServiceProblem, ServiceUnreachable: as `get`, and where the stream breaks off.
        """
        with self._export(sae, explained, form) as answer:
            yield from answer.iter_lines()

    def save_export(
        self,
        sae: str,
        path: Path,
        *,
        explained: bool | None = None,
        form: Literal["ndjson", "portable", "parquet"] = "parquet",
    ) -> int:
        """Bytes of the file that it writes: what is known of the SAE's features; it appears when it is whole.

        Raises:
            ServiceProblem, ServiceUnreachable: as `export`; there is no file then, or the one that was there before.
        """
        unfinished = path.with_name(path.name + ".part")
        try:
            with self._export(sae, explained, form) as answer, unfinished.open("wb") as file:
                n_bytes = sum(file.write(part) for part in answer.iter_raw())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return n_bytes

    def import_lines(
        self, lines: Iterable[str], *, source: str | None = None, part_bytes: int = 1_000_000
    ) -> ImportSummary:
        """What the lines of an export (`form="portable"`) brought to this service.

        They are sent in parts of at most so many bytes, each kept whole or not at all. One that is refused ends the
        import; those before it are kept, and all of the lines may be sent again.

        Raises:
            ServiceProblem, ServiceUnreachable: as `get`.
        """
        reports, asked = [], _given({"source": source})
        for part in _parts(lines, part_bytes):
            sent = {"content": part, "headers": {"Content-Type": "application/x-ndjson"}}
            reports.append(self._ask("POST", "/v1/imports", params=asked, **sent).json())
        return import_summary(reports)

    @contextmanager
    def _export(self, sae: str, explained: bool | None, form: str) -> Iterator[httpx2.Response]:
        path, asked = f"/v1/saes/{_part(sae)}/export", _given({"explained": explained, "format": form})
        try:
            with self._http.stream("GET", path, params=asked) as answer:
                _refuse(answer)
                yield answer
        except httpx2.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error

    def concepts(self) -> Iterator[Concept]:
        """Concepts in their taxonomy."""
        return (read(Concept, one) for one in self.items("/v1/concepts"))

    def runs(self) -> Iterator[RunInfo]:
        """Runs, newest first."""
        return (read(RunInfo, one) for one in self.items("/v1/runs"))

    def run(self, run_id: str) -> RunInfo:
        """One run with its settings and versions."""
        return read(RunInfo, self.get(f"/v1/runs/{_part(run_id)}"))  # type: ignore[no-any-return]

    # ------------------------------------------------------------------------------------- jobs

    def submit(self, kind: str, settings: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """The job that was asked for; the same idempotency key with the same request names the same job."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        asked = {"kind": kind, "settings": dict(settings)}
        return _job(self._ask("POST", "/v1/jobs", json=asked, headers=headers))

    def jobs(self, *, state: str | None = None, kind: str | None = None) -> Iterator[Job]:
        """Jobs, newest first."""
        return (read(Job, one) for one in self.items("/v1/jobs", state=state, kind=kind))

    def job(self, job_id: str) -> Job:
        """Where a job stands."""
        return _job(self._ask("GET", f"/v1/jobs/{_part(job_id)}"))

    def cancel(self, job_id: str) -> Job:
        """The job, told to end."""
        return _job(self._ask("POST", f"/v1/jobs/{_part(job_id)}/cancel"))

    def retry(self, job_id: str) -> Job:
        """The failed or cancelled job, waiting again."""
        return _job(self._ask("POST", f"/v1/jobs/{_part(job_id)}/retry"))

    def events(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """What happens to a job until it has ended; a connection that breaks off is taken up after the last event seen.

        Raises:
            ServiceProblem, ServiceUnreachable: as `get`.
        """
        failures = 0
        while True:
            try:
                with self._http.stream(
                    "GET", f"/v1/jobs/{_part(job_id)}/events", headers={"Last-Event-ID": str(after)}, timeout=None
                ) as answer:
                    _refuse(answer)
                    for line in answer.iter_lines():
                        if line.startswith("data:"):
                            event: JobEvent = TypeAdapter(JobEvent).validate_json(line.removeprefix("data:"))
                            after, failures = event.number, 0
                            yield event
                return
            except httpx2.TransportError as error:
                failures += 1
                if failures > _PATIENCE:
                    raise _unreachable(self._http.base_url, error) from error
                time.sleep(0.2 * failures)

    def wait(self, job_id: str, *, seconds: float | None = None, pause: float = 0.5) -> Job:
        """The job at its end, done, failed or cancelled.

        Raises:
            JobConflict: it has not ended within `seconds`.
        """
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            job = self.job(job_id)
            if job.state.is_end:
                return job
            if until is not None and time.monotonic() >= until:
                raise JobConflict(f"job {job_id} is still {job.state} after {seconds:g} s; wait longer or cancel it.")
            time.sleep(pause)

    # ------------------------------------------------------------------------------------- requests

    def _ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        for attempt in range(_PATIENCE + 1):
            try:
                answer = self._http.request(method, path, **options)
            except httpx2.TransportError as error:
                raise _unreachable(self._http.base_url, error) from error
            if answer.status_code == 429 and attempt < _PATIENCE:
                time.sleep(min(float(answer.headers.get("Retry-After", "1")), _LONGEST_PAUSE))
                continue
            break
        _refuse(answer)
        return answer


def _refuse(answer: httpx2.Response) -> None:
    if answer.is_success:
        return
    answer.read()
    is_problem = answer.headers.get("content-type", "").startswith("application/problem+json")
    found: Mapping[str, Any] = answer.json() if is_problem else {"detail": answer.text[:300]}
    raise ServiceProblem(
        kind=str(found.get("type", "http")).rpartition(":")[2],
        status=answer.status_code,
        title=found.get("title", answer.reason_phrase),
        detail=found["detail"],
        request_id=found.get("request_id", answer.headers.get("X-Request-ID", "none")),
        errors=tuple(f"{one['where']}: {one['message']}" for one in found.get("errors", ())),
    )


def _parts(lines: Iterable[str], n_bytes: int) -> Iterator[bytes]:
    """The lines in portions of at most so many bytes; a longer line is a portion of its own."""
    portion = b""
    for line in lines:
        encoded = line.rstrip("\n").encode() + b"\n"
        if portion and len(portion) + len(encoded) > n_bytes:
            yield portion
            portion = b""
        portion += encoded
    if portion:
        yield portion


def _unreachable(address: Any, error: Exception) -> ServiceUnreachable:
    return ServiceUnreachable(f"{address} does not answer ({error}); `safe-sail serve` starts a service.")


def _given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that are set; truth values as the service writes them."""
    return {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in parameters.items()
        if value is not None
    }


def _part(name: str) -> str:
    return quote(name, safe="")


def _job(answer: httpx2.Response) -> Job:
    job: Job = TypeAdapter(Job).validate_json(answer.content)
    return job
