"""The schema: made once, equal to the tables, known by its golden file, and refused where it is another's."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, Engine, inspect, text

import db.migrate
import db.search
from db.engine import make_engine, reading, write_connection, writing
from db.migrate import current_revision, head_revision, require_head, upgrade
from db.search import SEARCH_OBJECTS, create_search, search_features
from db.store import save_explanations
from db.tables import DESCENDING_INDEXES, Base
from safe_sail.errors import SchemaOutOfDate
from scripts.migrate import migrate
from tests.db import builders as a

UNCOMPARED = (*SEARCH_OBJECTS, *DESCENDING_INDEXES)
GOLDEN = Path(__file__).parents[1] / "golden" / "schema.sql"


@pytest.fixture
def empty(empty_url: str) -> Iterator[Engine]:
    engine = make_engine(empty_url)
    yield engine
    engine.dispose()


def test_an_empty_database_is_brought_to_the_newest_revision_once(empty: Engine) -> None:
    assert upgrade(empty) == (None, head_revision())
    assert upgrade(empty) == (head_revision(), head_revision())
    require_head(empty)


def test_the_upgraded_database_equals_the_tables(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_object": lambda thing, name, *_: (
                    not (name or "").startswith((*SEARCH_OBJECTS, *DESCENDING_INDEXES))
                ),
                "compare_type": True,
                "compare_server_default": True,
            },
        )
        assert compare_metadata(context, Base.metadata) == []


def test_best_scores_are_walked_along_indexes_with_a_direction(engine: Engine) -> None:
    with engine.connect() as connection:
        query = (
            "SELECT sql FROM sqlite_master" if engine.dialect.name == "sqlite" else "SELECT indexdef FROM pg_indexes"
        )
        made = [" ".join(str(row[0]).split()) for row in connection.execute(text(query))]
    listed = ", " if engine.dialect.name == "sqlite" else ")"  # on SQLite all that a page shows follows
    orders = ("density", "rate_gap", "score")
    walked = [("feature_listing", f"(sae_key, {name} DESC, feature_index{listed}") for name in orders]
    walked.append(("concept_score", "(sae_key, feature_index, rate_gap DESC, concept)"))
    walked.append(("concept_score", "(sae_key, rate_gap DESC, feature_index, concept)"))
    for table, columns in walked:
        assert sum(columns in one and table in one for one in made) == 1, columns


def test_sqlite_schema_matches_the_golden_file(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'store.db'}")
    upgrade(engine)
    with engine.connect() as connection:
        query = """SELECT sql FROM sqlite_master
            WHERE sql IS NOT NULL AND name NOT LIKE 'explanation_fts_%' OR type = 'trigger'
            ORDER BY tbl_name, type DESC, name"""
        schema = "".join(f"{row[0]};\n\n" for row in connection.execute(text(query)))
    engine.dispose()
    schema = "\n".join(line.rstrip() for line in schema.splitlines()) + "\n"
    if not GOLDEN.exists():
        GOLDEN.write_text(schema)
        pytest.fail(f"{GOLDEN.name} was missing and is written now; read it and keep it.")
    assert schema == GOLDEN.read_text(), f"the schema changed; if that is meant, delete {GOLDEN.name} and run again"


def test_a_database_without_schema_is_refused_and_not_created(empty: Engine) -> None:
    with pytest.raises(SchemaOutOfDate, match="holds no schema yet; type `safe-sail migrate --database "):
        require_head(empty)
    if empty.dialect.name == "sqlite":
        assert not Path(str(empty.url.database)).exists()


def test_a_database_of_a_newer_program_is_refused_and_left_alone(engine: Engine) -> None:
    set_revision(engine, "9999")
    for use in (require_head, upgrade):
        with pytest.raises(SchemaOutOfDate, match="at revision 9999, which this program does not know"):
            use(engine)
    assert current_revision(engine) == "9999"


def test_a_database_of_an_older_program_is_refused_until_it_is_migrated(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = "9999"
    monkeypatch.setattr(db.migrate, "head_revision", lambda: newer)
    with pytest.raises(
        SchemaOutOfDate, match=f"is at revision {head_revision()}, this program needs {newer}; type `safe-sail migrate"
    ):
        require_head(engine)


def test_tables_of_someone_else_are_refused_and_left_alone(empty: Engine) -> None:
    with write_connection(empty) as connection:
        connection.execute(text("CREATE TABLE model (name TEXT)"))
    with pytest.raises(SchemaOutOfDate, match=r"tables of our names \(model\) but no revision"):
        upgrade(empty)
    assert table_names(empty) == {"model"}


def test_a_revision_that_fails_leaves_nothing_behind(empty: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(connection: Connection) -> None:
        assert "explanation" in inspect(connection).get_table_names()  # after the tables, before the end
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(db.search, "create_search", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            upgrade(empty)
    assert table_names(empty) == set()
    assert upgrade(empty).after == head_revision()


def test_several_processes_may_create_one_database(empty_url: str) -> None:
    code = "import sys; from db import engine, migrate; migrate.upgrade(engine.make_engine(sys.argv[1]))"
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen([sys.executable, "-c", code, empty_url], cwd=root, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [(process.communicate()[1], process.returncode) for process in started] == 2 * [("", 0)]


def test_search_follows_the_table_after_every_revision(empty: Engine) -> None:
    upgrade(empty)
    a.catalogue(empty)
    assert found_after_saving(empty, "zebra")


def test_a_rebuilt_table_loses_its_index_until_create_search_is_called(engine: Engine) -> None:
    a.catalogue(engine)
    with write_connection(engine, mode="migrate") as connection:
        operations = Operations(MigrationContext.configure(connection))
        rebuilt = "always" if engine.dialect.name == "sqlite" else "never"
        with operations.batch_alter_table("explanation", recreate=rebuilt) as batch:
            batch.create_index("ix_explanation_run_id", ["run_id"])
    if engine.dialect.name == "sqlite":
        assert not found_after_saving(engine, "zebra")  # the trap: no error, no result
    with write_connection(engine, mode="migrate") as connection:
        create_search(connection)
    assert found_after_saving(engine, "giraffe")


def test_the_command_says_what_it_did(empty_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    migrate(empty_url)
    migrate(empty_url)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(f": empty -> {head_revision()}")
    assert second.endswith(f": already at {head_revision()}")


def found_after_saving(engine: Engine, word: str) -> bool:
    with writing(engine) as session:
        save_explanations(session, [a.explanation(3, f"fires on a {word}")], run_id=a.RUN)
    with reading(engine) as session:
        return [hit.feature for hit in search_features(session, word)] == [a.feature(3)]


def set_revision(engine: Engine, revision: str) -> None:
    with write_connection(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :r"), {"r": revision})


def table_names(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return set(inspect(connection).get_table_names())
