"""Answers outlive the process, are shared between processes, and are told apart by everything that decides them."""

import subprocess
import sys
from pathlib import Path

import pytest

from safe_sail.errors import BadSettings
from safe_sail.llm.cache import CachedAnswer, ResponseCache, cache_key

BASE = {"base_url": "http://a/v1", "body": {"model": "m", "n": 1}, "prompt_version": "1", "sample": 0}
WRITER = """
import sys
from pathlib import Path
from safe_sail.llm.cache import CachedAnswer, ResponseCache
with ResponseCache(Path(sys.argv[1])) as cache:
    for number in range(200):
        cache.put(f"shared-{number}", CachedAnswer(sys.argv[2], 1, 2), model="m", prompt_version="1")
        cache.put(f"{sys.argv[2]}-{number}", CachedAnswer(sys.argv[2], 1, 2), model="m", prompt_version="1")
"""


def test_answer_outlives_the_process_that_kept_it(tmp_path: Path):
    answer = CachedAnswer('{"x": "é\u2028"}', 3, None)
    with ResponseCache(tmp_path / "a.db") as cache:
        cache.put("k", answer, model="m", prompt_version="1")
    with ResponseCache(tmp_path / "a.db") as cache:
        assert cache.get("k") == answer
        assert cache.get("other") is None
        cache.drop("k")
        assert cache.get("k") is None


def test_first_answer_stays(tmp_path: Path):
    with ResponseCache(tmp_path / "a.db") as cache:
        for text in ("first", "second"):
            cache.put("k", CachedAnswer(text, None, None), model="m", prompt_version="1")
        assert cache.get("k") == CachedAnswer("first", None, None)


def test_processes_share_one_file(tmp_path: Path):
    path = tmp_path / "a.db"
    names = ("one", "two", "three")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in names]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    with ResponseCache(path) as cache:
        assert len(cache) == 200 + 3 * 200
        shared = cache.get("shared-7")
        assert shared is not None
        assert shared.text in names


@pytest.mark.parametrize(
    "change",
    [
        {"base_url": "http://b/v1"},
        {"body": {"model": "other", "n": 1}},
        {"body": {"model": "m", "n": 2}},
        {"prompt_version": "2"},
        {"sample": 1},
    ],
)
def test_key_depends_on_everything_that_decides_the_answer(change: dict[str, object]):
    assert cache_key(**{**BASE, **change}) != cache_key(**BASE)  # type: ignore[arg-type]


def test_key_does_not_depend_on_the_order_of_fields():
    assert cache_key(**{**BASE, "body": {"n": 1, "model": "m"}}) == cache_key(**BASE)  # type: ignore[arg-type]


def test_file_that_is_no_cache_is_refused(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, and long enough to be read as one\n" * 40)
    with pytest.raises(BadSettings, match=r"notes\.txt: expected a writable SQLite file"):
        ResponseCache(path)
    with pytest.raises(BadSettings, match="unable to open"):
        ResponseCache(tmp_path / "missing" / "a.db")
