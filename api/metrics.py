"""What a monitor asks for: requests by route with their time, jobs by state, what language models cost; for Prometheus.

Routes are counted by their template, never by the address that was asked for, so that nobody can make series at will.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from sqlalchemy import Engine, func, select
from starlette.types import Scope

from db import tables
from db.engine import reading
from db.store import LedgerTotal, ledger_totals
from safe_sail.records import JobState

router = APIRouter()

PREFIX = "/v1"
"""Before every address of REST but health and metrics."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one app."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "safe_sail_request_seconds", "Time to the end of an answer.", ("method", "route"), buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.answers = Counter(
            "safe_sail_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(_Kept(engine))
        self._series: dict[tuple[str, str, int], tuple[Histogram, Counter]] = {}

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one answer."""
        method = method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
        kept = self._series.get((method, route, status))
        if kept is None:
            kept = self.seconds.labels(method, route), self.answers.labels(method, route, str(status))
            self._series[method, route, status] = kept
        kept[0].observe(seconds)
        kept[1].inc()


class _Kept(Collector):
    """Jobs and what language models cost, asked of the database when a monitor asks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterator[Metric]:
        """Nothing: a registry would otherwise ask the database before there is one."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Jobs by state with the age of the oldest that waits, and the ledger's sums.

        Raises:
            StoreError: as `db.engine.reading`.
        """
        row = tables.JobRow
        with reading(self._engine) as session:
            totals = ledger_totals(session)
            counted: dict[str, int] = dict(session.execute(select(row.state, func.count()).group_by(row.state)).all())
            oldest = session.scalar(select(func.min(row.created)).where(row.state == str(JobState.QUEUED)))
        jobs = GaugeMetricFamily("safe_sail_jobs", "Jobs by state.", labels=("state",))
        for state in JobState:
            jobs.add_metric((str(state),), counted.get(str(state), 0))
        yield jobs
        age = 0.0 if oldest is None else (datetime.now(UTC) - oldest).total_seconds()
        yield GaugeMetricFamily("safe_sail_oldest_queued_job_seconds", "Age of the oldest job that waits.", max(age, 0))
        yield from _spent(totals)


def _spent(totals: Sequence[LedgerTotal]) -> Iterator[Metric]:
    by = ("model", "stage")
    tokens = CounterMetricFamily(
        "safe_sail_llm_tokens",
        "Tokens of language models; `assumed`: may be billed.",
        None,
        (*by, "kind"),
    )
    requests = CounterMetricFamily("safe_sail_llm_requests", "Requests sent to language models.", None, by)
    cost = CounterMetricFamily("safe_sail_llm_cost_dollars", "At list price, where the price is known.", None, by)
    unpriced = CounterMetricFamily("safe_sail_llm_unpriced", "Features whose price is not known.", None, by)
    for one in totals:
        of = (one.model, one.stage)
        for kind in ("prompt", "completion", "assumed"):
            tokens.add_metric((*of, kind), getattr(one, f"{kind}_tokens"))
        requests.add_metric(of, one.attempts)
        cost.add_metric(of, one.cost)
        unpriced.add_metric(of, one.n_unpriced)
    yield from (tokens, requests, cost, unpriced)


def route_of(scope: Scope) -> str:
    """Template of the route that a request took; `none` where it took none."""
    template = scope["state"].get("template") or getattr(scope.get("route"), "path", None)
    if not isinstance(template, str):
        return "none"
    # a route knows its path without the prefix that it was included with
    under = scope["path"].startswith(PREFIX + "/") and not template.startswith(PREFIX + "/")
    return PREFIX + template if under else template


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """Counters of this process and jobs of the database, as Prometheus reads them; needs the scope admin."""
    kept: Metrics = request.app.state.metrics
    return Response(generate_latest(kept.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
