"""A client of the service: lists as iterators, records as in `safe_sail.records`, jobs to ask for, follow and wait for.

1. `Client` speaks HTTP to one service. A key comes by argument, or from `SAFE_SAIL_KEY` in the environment.
2. A list is asked for page by page as it is walked along, by the `Link` that each page carries.
3. An RFC 9457 problem becomes `ServiceProblem` with the problem's fields; a 429 is waited for and asked again.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import TypeAdapter

from safe_sail.errors import BadInput, JobConflict, ServiceProblem, ServiceUnreachable
from safe_sail.records import (
    Concept,
    ConceptScore,
    Context,
    Explanation,
    ExplanationScore,
    FeatureId,
    Histogram,
    Job,
    JobEvent,
    ModelRef,
    RunInfo,
    SaeFacts,
    SaeScore,
)

T = TypeVar("T")
_PATIENCE = 5
"""How often a request that came too early, or an event stream that broke off, is tried again."""
_LONGEST_PAUSE = 60.0


# --------------------------------------------------------------------------------------------- what comes back


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeInfo:
    """One SAE, its facts and scores."""

    slug: str
    site: str
    width: int
    d_in: int
    architecture: str
    model_id: str | None
    facts: SaeFacts | None
    """None before it was measured."""
    scores: tuple[SaeScore, ...]
    """By descending rate gap; empty before scoring."""
    n_collected: int
    n_explained: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSummary:
    """One feature in a list; None where nothing was measured."""

    index: int
    density: float | None
    max_activation: float | None
    n_contexts: int | None
    concept: str | None
    """The concept asked for, or the one with the largest rate gap."""
    rate_gap: float | None
    auroc: float | None
    explanation: str | None
    explainer: str | None
    explanation_score: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureInfo:
    """Everything that is known of one feature."""

    feature: FeatureId
    n_tokens_seen: int | None
    density: float | None
    max_activation: float | None
    histogram: Histogram | None
    contexts: tuple[Context, ...]
    """Descending by peak activation."""
    concept_scores: tuple[ConceptScore, ...]
    """By descending rate gap."""
    explanations: tuple[Explanation, ...]
    explanation_scores: tuple[ExplanationScore, ...]
    """Of all explanations."""


def _read(kind: Any, value: Any) -> Any:
    return TypeAdapter(kind).validate_python(value)


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
        return (_read(ModelRef, one["record"]) for one in self.items("/v1/models"))

    def saes(self, *, model: str | None = None, concept: str | None = None, sort: str = "slug") -> Iterator[SaeInfo]:
        """SAEs with facts and scores, in the order asked for."""
        return (_sae(one) for one in self.items("/v1/saes", model=model, concept=concept, sort=sort))

    def sae(self, slug: str) -> SaeInfo:
        """One SAE."""
        return _sae(self.get(f"/v1/saes/{_part(slug)}"))

    def features(self, sae: str, **filters: Any) -> Iterator[FeatureSummary]:
        """Features of an SAE; filters and order by the names that the service documents, as `concept`, `q`, `sort`."""
        found = self.items(f"/v1/saes/{_part(sae)}/features", **({"limit": 200} | filters))
        return (_read(FeatureSummary, one) for one in found)

    def feature(self, sae: str, index: int) -> FeatureInfo:
        """Everything that is known of one feature."""
        found = self.get(f"/v1/saes/{_part(sae)}/features/{index}")
        told = found["explanations"]
        return _read(  # type: ignore[no-any-return]
            FeatureInfo,
            found
            | {
                "concept_scores": [one["record"] for one in found["concept_scores"]],
                "explanations": [one["explanation"]["record"] for one in told],
                "explanation_scores": [score["record"] for one in told for score in one["scores"]],
            },
        )

    def export(self, sae: str, *, explained: bool | None = None) -> Iterator[str]:
        """Lines of JSON, one for each feature of which anything is known, as the service streams them.

        Raises:
            ServiceProblem, ServiceUnreachable: as `get`, and where the stream breaks off.
        """
        try:
            path, asked = f"/v1/saes/{_part(sae)}/export", _given({"explained": explained})
            with self._http.stream("GET", path, params=asked) as answer:
                _refuse(answer)
                yield from answer.iter_lines()
        except httpx2.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error

    def concepts(self) -> Iterator[Concept]:
        """Concepts in their taxonomy."""
        return (_read(Concept, one) for one in self.items("/v1/concepts"))

    def runs(self) -> Iterator[RunInfo]:
        """Runs, newest first."""
        return (_read(RunInfo, one) for one in self.items("/v1/runs"))

    def run(self, run_id: str) -> RunInfo:
        """One run with its settings and versions."""
        return _read(RunInfo, self.get(f"/v1/runs/{_part(run_id)}"))  # type: ignore[no-any-return]

    # ------------------------------------------------------------------------------------- jobs

    def submit(self, kind: str, settings: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """The job that was asked for; the same idempotency key with the same request names the same job."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        asked = {"kind": kind, "settings": dict(settings)}
        return _job(self._ask("POST", "/v1/jobs", json=asked, headers=headers))

    def jobs(self, *, state: str | None = None, kind: str | None = None) -> Iterator[Job]:
        """Jobs, newest first."""
        return (_read(Job, one) for one in self.items("/v1/jobs", state=state, kind=kind))

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


def _sae(found: Mapping[str, Any]) -> SaeInfo:
    facts = found["facts"]
    return _read(  # type: ignore[no-any-return]
        SaeInfo,
        {name: found["sae"][name] for name in ("slug", "site", "width", "d_in", "architecture", "model_id")}
        | {"facts": None if facts is None else facts["record"], "scores": [one["record"] for one in found["scores"]]}
        | {name: found[name] for name in ("n_collected", "n_explained")},
    )
