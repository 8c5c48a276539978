"""The queue: one job for one worker, leases that end, fences that hold, events without gaps; on both databases."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, select, update

from db import jobs, leases
from db.engine import fenced, reading, writing
from db.store import save_run
from db.tables import JobRow, RunRow
from safe_sail.errors import BadInput, BadRecord, IdempotencyKeyReused, JobConflict, LeaseLost, NotFound
from safe_sail.records import Job, JobError, JobEvent, JobProgress, JobState
from tests.db import builders as a

KIND = "explain-features"


def asked(engine: Engine, n: int = 1, **how: object) -> list[str]:
    found = []
    for place in range(n):
        with writing(engine) as session:
            found.append(jobs.enqueue(session, KIND, {"place": place}, **how)[0].job_id)
    return found


def job(engine: Engine, job_id: str) -> Job:
    with reading(engine) as session:
        return jobs.load_job(session, job_id)


def events(engine: Engine, job_id: str, after: int = 0) -> list[JobEvent]:
    with reading(engine) as session:
        return jobs.list_events(session, job_id, after=after)


def expire(engine: Engine, job_id: str) -> None:
    """As if its worker had not been heard of for the length of its lease."""
    with writing(engine) as session:
        session.execute(update(JobRow).where(JobRow.job_id == job_id).values(lease_until=JobRow.created))


def claimed(engine: Engine, worker: str = "w1") -> leases.Claim:
    held = leases.claim(engine, worker, lease_s=3600)
    assert held is not None
    return held


def test_a_job_goes_from_waiting_to_done_and_tells_each_step(engine: Engine):
    (job_id,) = asked(engine)
    held = claimed(engine)
    assert held.job.job_id == job_id
    assert held.job.settings == {"place": 0}
    assert leases.heartbeat(engine, held, JobProgress(step="explaining", n_done=3, n_total=9))
    leases.finish(engine, held, {"explained": 9})
    found = job(engine, job_id)
    assert (found.state, found.result, found.worker, found.attempts) == (JobState.DONE, {"explained": 9}, None, 1)
    assert found.progress == JobProgress(step="explaining", n_done=3, n_total=9)
    told = events(engine, job_id)
    assert [one.number for one in told] == [1, 2, 3, 4]
    assert [one.data.get("state", one.kind) for one in told] == ["queued", "running", "progress", "done"]
    assert [one.number for one in events(engine, job_id, after=2)] == [3, 4]


def test_jobs_are_taken_by_priority_then_age_and_none_is_left(engine: Engine):
    first, second = asked(engine, 2)
    (urgent,) = asked(engine, priority=1)
    assert [claimed(engine).job.job_id for _ in range(3)] == [urgent, first, second]
    assert leases.claim(engine, "w") is None


def test_workers_never_share_a_job(engine: Engine):
    """Eight threads with connections of their own race for sixty jobs."""
    wanted = asked(engine, 60)
    barrier = threading.Barrier(8)

    def take(place: int) -> list[str]:
        barrier.wait()
        found = []
        while (held := leases.claim(engine, f"w{place}", lease_s=3600)) is not None:
            found.append(held.job.job_id)
        return found

    with ThreadPoolExecutor(8) as pool:
        taken = Counter(one for part in pool.map(take, range(8)) for one in part)
    assert taken == Counter(wanted)


def test_an_expired_lease_is_taken_up_again_and_the_old_holder_can_do_nothing(engine: Engine):
    (job_id,) = asked(engine)
    old = claimed(engine, "old")
    assert leases.claim(engine, "new") is None
    expire(engine, job_id)
    new = claimed(engine, "new")
    assert (new.job.job_id, new.job.attempts) == (job_id, 2)
    for use in (
        lambda: leases.heartbeat(engine, old),
        lambda: leases.finish(engine, old, {}),
        lambda: leases.fail(engine, old, JobError(type="X", message="x")),
        lambda: leases.release(engine, old),
        lambda: leases.stop_cancelled(engine, old),
    ):
        with pytest.raises(LeaseLost):
            use()
    leases.finish(engine, new, {})
    assert job(engine, job_id).state is JobState.DONE


def test_a_stopped_worker_saves_nothing_once_another_has_its_job(engine: Engine):
    (job_id,) = asked(engine)
    old = claimed(engine, "old")
    fence = fenced(engine, leases.fence(old))
    with writing(fence) as session:
        save_run(session, a.run("while-held"))
    expire(engine, job_id)
    claimed(engine, "new")
    with pytest.raises(LeaseLost), writing(fence) as session:
        save_run(session, a.run("too-late"))
    with reading(engine) as session:
        assert list(session.scalars(select(RunRow.run_id))) == ["while-held"]


def test_a_job_cannot_be_claimed_while_its_holder_is_saving(engine: Engine):
    """The fence's lock: who looks for jobs passes this one by until the transaction has ended."""
    (job_id,) = asked(engine)
    old = claimed(engine, "old")
    expire(engine, job_id)
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time, so there is no such moment")
    with writing(fenced(engine, leases.fence(old))):
        assert leases.claim(engine, "new") is None
    assert claimed(engine, "new").job.job_id == job_id


def test_a_job_that_kills_its_workers_is_given_up_unless_it_goes_on(engine: Engine):
    (job_id,) = asked(engine)
    for _ in range(leases.MAX_IDLE_ATTEMPTS - 1):
        claimed(engine)
        expire(engine, job_id)
    leases.heartbeat(engine, claimed(engine), JobProgress(step="explaining", n_done=1, n_total=2))
    expire(engine, job_id)
    for _ in range(leases.MAX_IDLE_ATTEMPTS):
        claimed(engine)
        expire(engine, job_id)
    assert leases.claim(engine, "w") is None
    found = job(engine, job_id)
    assert found.state is JobState.FAILED
    assert found.error is not None
    assert "died 5 times in a row" in found.error.message
    assert found.attempts == 2 * leases.MAX_IDLE_ATTEMPTS


def test_a_released_job_waits_at_its_place(engine: Engine):
    first, second = asked(engine, 2)
    leases.release(engine, claimed(engine))
    assert job(engine, first).state is JobState.QUEUED
    assert [claimed(engine).job.job_id for _ in range(2)] == [first, second]


def test_cancelling_ends_a_waiting_job_and_tells_a_running_one(engine: Engine):
    waiting, _ = asked(engine, 2)
    with writing(engine) as session:
        assert jobs.request_cancel(session, waiting).state is JobState.CANCELLED
    held = claimed(engine)
    with writing(engine) as session:
        assert jobs.request_cancel(session, held.job.job_id).state is JobState.RUNNING
    with writing(engine) as session:
        jobs.request_cancel(session, held.job.job_id)
    assert leases.heartbeat(engine, held) is False
    leases.stop_cancelled(engine, held)
    found = job(engine, held.job.job_id)
    assert found.state is JobState.CANCELLED
    assert [one.kind for one in events(engine, held.job.job_id)].count("cancel-requested") == 1
    with pytest.raises(JobConflict, match="cancelled already"), writing(engine) as session:
        jobs.request_cancel(session, waiting)


def test_a_cancelled_job_of_a_dead_worker_is_not_taken_up(engine: Engine):
    (job_id,) = asked(engine)
    claimed(engine)
    with writing(engine) as session:
        jobs.request_cancel(session, job_id)
    expire(engine, job_id)
    assert leases.claim(engine, "w") is None
    assert job(engine, job_id).state is JobState.CANCELLED


def test_retrying_lets_a_failed_job_wait_again_and_no_other(engine: Engine):
    (job_id,) = asked(engine)
    with pytest.raises(JobConflict, match="is queued"), writing(engine) as session:
        jobs.retry(session, job_id)
    leases.fail(engine, claimed(engine), JobError(type="BadInput", message="no contexts"))
    assert job(engine, job_id).error == JobError(type="BadInput", message="no contexts")
    with writing(engine) as session:
        found = jobs.retry(session, job_id)
    assert (found.state, found.error, found.finished) == (JobState.QUEUED, None, None)
    leases.finish(engine, claimed(engine), {})
    with pytest.raises(JobConflict, match="is done"), writing(engine) as session:
        jobs.retry(session, job_id)


def test_an_idempotency_key_names_one_job(engine: Engine):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: asked(engine, idempotency_key="k")[0], range(4)))
    assert len(set(found)) == 1
    with pytest.raises(IdempotencyKeyReused, match=found[0]), writing(engine) as session:
        jobs.enqueue(session, KIND, {"place": 5}, idempotency_key="k")
    for key in ("", "x" * 201):
        with pytest.raises(BadInput, match="200 characters"), writing(engine) as session:
            jobs.enqueue(session, KIND, {}, idempotency_key=key)


def test_a_job_that_nobody_takes_in_time_fails(engine: Engine):
    (job_id,) = asked(engine, wait_s=0.0)
    time.sleep(0.01)
    assert leases.claim(engine, "w") is None
    error = job(engine, job_id).error
    assert error is not None
    assert error.type == "DeadlinePassed"


def test_jobs_are_listed_newest_first_page_by_page(engine: Engine):
    wanted = asked(engine, 5)[::-1]
    leases.finish(engine, claimed(engine), {})
    found, cursor = [], None
    while True:
        with reading(engine) as session:
            page = jobs.list_jobs(session, cursor=cursor, limit=2)
        found += [one.job_id for one in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == wanted
    with reading(engine) as session:
        assert [one.job_id for one in jobs.list_jobs(session, states=[JobState.DONE]).jobs] == wanted[-1:]
        assert jobs.list_jobs(session, kind="score-saes").jobs == []
        assert jobs.list_jobs(session, but=[KIND]).jobs == []
        assert len(jobs.list_jobs(session, but=["score-saes"]).jobs) == 5
        assert jobs.count_jobs(session, but=[KIND]) == {}
        assert jobs.count_jobs(session) == {JobState.QUEUED: 4, JobState.DONE: 1}
        for cursor in ("x", "W10", "WyJqb2IiLCAxLjVd", "WyJqb2IiLCBOYU5d"):
            with pytest.raises(BadInput, match="no cursor"):
                jobs.list_jobs(session, cursor=cursor)


def test_unknown_jobs_and_settings_that_are_no_json_are_refused(engine: Engine):
    for use in (jobs.load_job, jobs.list_events, jobs.request_cancel, jobs.retry):
        with pytest.raises(NotFound, match="no job is called"), writing(engine) as session:
            use(session, "nobody\0")
    for values in ({"x": float("nan")}, {"x": {1}}, {"x": "\ud800"}):
        with pytest.raises(BadRecord), writing(engine) as session:
            jobs.enqueue(session, KIND, values)


def test_a_worker_takes_only_its_kinds_and_old_ended_jobs_are_forgotten(engine: Engine):
    with writing(engine) as session:
        ids = [jobs.enqueue(session, kind, {}, priority=1)[0].job_id for kind in ("trace-prompt",) * 4]
    asked(engine)
    held = leases.claim(engine, "w", kinds=[KIND])
    assert held is not None
    assert held.job.kind == KIND
    assert leases.claim(engine, "w", kinds=[KIND]) is None
    with writing(engine) as session:
        for job_id in ids[:3]:
            jobs.request_cancel(session, job_id)
        assert jobs.forget_ended(session, ["trace-prompt"], keep=9) == 0
        assert jobs.forget_ended(session, ["trace-prompt"], keep=2) == 2
        with pytest.raises(NotFound):
            jobs.load_job(session, ids[1])
        assert jobs.list_events(session, ids[2])
    assert job(engine, held.job.job_id).state is JobState.RUNNING
