"""The published database comes in with its own counts, is searched, and leaves as the same JSON.

Counts are those of the release's method notes: per layer and domain, computed from the file by other code.
"""

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from db.engine import reading, writing
from db.interchange.safe_sail_json import (
    MASK,
    PUBLISHED,
    RELEASE,
    Imported,
    export_safe_sail,
    import_safe_sail,
    read_safe_sail,
)
from db.search import search_features
from db.store import (
    list_features,
    list_saes,
    load_explanations,
    load_feature_tags,
    load_published_scores,
    save_explanation_scores,
    save_explanations,
    save_run,
)
from db.tables import ExplanationRow, FeatureTagRow, PublishedScoreRow, SaeRow
from safe_sail.errors import BadInput, ExportRefused, ImportUnreadable
from safe_sail.records import FeatureId
from tests.db import builders as a

FILE = Path(__file__).parents[1] / "data" / "safe_sail" / "neuron_db_en.json.gz"
PREFIX = "qwen2.5-3b-instruct.mlp_out"
IN_LAYER = {0: 1343, 8: 1350, 17: 843, 26: 772, 35: 392}
TAGGED = {0: 479, 8: 502, 17: 397, 26: 218, 35: 162}
DOMAINS = ("politics", "pornography", "violence", "terror")
OF_DOMAIN = {0: (300, 99, 154, 16), 8: (343, 78, 158, 23), 17: (255, 56, 151, 18), 26: (124, 44, 85, 3),
             35: (122, 32, 34, 3)}  # fmt: skip


def bring(engine: Engine, path: Path = FILE, prefix: str = PREFIX) -> Imported:
    with writing(engine) as session:
        save_run(session, a.run())
        return import_safe_sail(session, read_safe_sail(path), prefix=prefix, sae_id=path.name, run_id=a.RUN)


def published() -> dict[str, dict[str, object]]:
    return json.loads(gzip.decompress(FILE.read_bytes()))


def test_the_release_comes_in_with_its_counts_is_searched_and_leaves_equal(engine: Engine, tmp_path: Path) -> None:
    done = bring(engine)
    assert (done.n_features, done.n_tagged, done.n_masked, done.n_without_explanation) == (4700, 1758, 1144, 13)
    with reading(engine) as session:
        slugs = dict(session.execute(select(SaeRow.sae_key, SaeRow.slug)).all())
        layer = {key: int(slug.rpartition(".")[2]) for key, slug in slugs.items()}
        score, tag = PublishedScoreRow, FeatureTagRow
        values = {(layer[key], index): value for key, index, value in
                  session.execute(select(score.sae_key, score.feature_index, score.value))}  # fmt: skip
        tags = [(layer[key], index, name) for key, index, name in
                session.execute(select(tag.sae_key, tag.feature_index, tag.tag))]  # fmt: skip
        safety = {(at, index) for at, index, _ in tags}
        assert Counter(at for at, _ in values) == IN_LAYER
        assert Counter(at for at, _ in safety) == TAGGED
        of_domain = Counter((at, name) for at, _, name in tags)
        assert of_domain == {(at, d): n for at, ns in OF_DOMAIN.items() for d, n in zip(DOMAINS, ns, strict=True)}
        safety_values = [values[name] for name in safety]
        assert (round(min(safety_values), 4), round(max(safety_values), 4)) == (0.2001, 0.7239)
        assert round(sum(safety_values) / len(safety_values), 4) == 0.3825
        said = select(func.count()).select_from(ExplanationRow)
        assert session.scalar(said) == 4700 - 13
        assert session.scalar(said.where(ExplanationRow.text == MASK)) == 1144
        with_bomb = {
            key for key, one in published().items() if re.search(r"\bbomb", str(one["explanation"]), re.IGNORECASE)
        }
        hits = search_features(session, "bomb", limit=1000)
        assert with_bomb
        assert {f"{hit.feature.sae.rpartition('.')[2]}_{hit.feature.index}" for hit in hits} == with_bomb
        assert search_features(session, MASK) == []
        assert list_features(session, f"{PREFIX}.17", limit=1).total == 843
        out = tmp_path / "out.json"
        assert export_safe_sail(session, sorted(slugs.values()), out) == (4700, 0)
    assert json.loads(out.read_text()) == published()


def test_null_masked_and_tags_stay_what_they_are(engine: Engine, tmp_path: Path) -> None:
    path = write(tmp_path, {
        "17_3": {"explanation": None, "correlation_score": 0.25, "tag_list": ["violence", "politics"]},
        "17_4": {"explanation": MASK, "correlation_score": 1, "tag_list": []},
    })  # fmt: skip
    bring(engine, path)
    null, masked = (FeatureId(sae=f"{PREFIX}.17", index=index) for index in (3, 4))
    with reading(engine) as session:
        assert load_explanations(session, null) == []
        assert [one.record.text for one in load_explanations(session, masked)] == [MASK]
        (score,) = load_published_scores(session, null)
        assert (score.record.value, score.record.source, score.record.method) == (0.25, RELEASE, "correlation_score")
        assert [one.record.tags for one in load_feature_tags(session, null)] == [("violence", "politics")]
        assert load_feature_tags(session, masked) == []


def test_bringing_the_same_file_again_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    entry = {"explanation": "fires on bombs", "correlation_score": 0.5, "tag_list": ["terror"]}
    path = write(tmp_path, {"0_1": entry})
    assert bring(engine, path) == bring(engine, path)
    with reading(engine) as session:
        assert len(search_features(session, "bombs")) == 1
        export_safe_sail(session, [f"{PREFIX}.0"], tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == {"0_1": entry}


GOOD = {"explanation": "x", "correlation_score": 0.5, "tag_list": []}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "expected JSON"),
        ("[]", r"expected a JSON object of features, .* got \[\]"),
        ("{}", "expected a JSON object of features"),
        ('{"0_1": 1, "0_1": 1}', "expected every key once; got '0_1'"),
        ('{"0_1": {"explanation": "x", "correlation_score": NaN, "tag_list": []}}', "expected numbers; got 'NaN'"),
        (b"\xff\xfe", "expected UTF-8; byte 0"),
        ({"zero_1": GOOD}, "key 'zero_1': expected `<layer>_<latent>`, as `17_42`; got 'zero_1'"),
        ({"0_01": GOOD}, "key '0_01': expected `<layer>_<latent>`"),
        ({"0_1": None}, "key '0_1': expected the fields correlation_score, explanation, tag_list; got None"),
        ({"0_1": GOOD | {"more": 1}}, "expected the fields"),
        ({"0_1": GOOD | {"explanation": ""}}, "`explanation` to be a text .* not empty; got ''"),
        ({"0_1": GOOD | {"explanation": "a\x00"}}, "without NUL"),
        ({"0_1": GOOD | {"explanation": "\ud800"}}, "half characters"),
        ({"0_1": GOOD | {"correlation_score": "0.5"}}, "`correlation_score` to be a finite number; got '0.5'"),
        ({"0_1": GOOD | {"correlation_score": True}}, "got True"),
        ({"0_1": GOOD | {"correlation_score": 10**400}}, "finite number"),
        ({"0_1": GOOD | {"tag_list": "terror"}}, "`tag_list` to be a list; got 'terror'"),
        ({"0_1": GOOD | {"tag_list": ["a", "a"]}}, "every tag once"),
    ],
)
def test_another_file_is_refused_by_its_key(tmp_path: Path, content: object, complaint: str) -> None:
    with pytest.raises(ImportUnreadable, match=complaint):
        read_safe_sail(write(tmp_path, content))


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImportUnreadable, match=r"nope.json cannot be read \(No such file"):
        read_safe_sail(tmp_path / "nope.json")
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(FILE.read_bytes()[:5000])
    with pytest.raises(ImportUnreadable, match="the gzip data is damaged"):
        read_safe_sail(cut)


def test_a_latent_beyond_the_width_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    assert PUBLISHED.width is not None
    path = write(tmp_path, {"0_1": GOOD, f"0_{PUBLISHED.width}": GOOD})
    with pytest.raises(ImportUnreadable, match="key `0_20480`: expected a latent of 0 to 20479"):
        bring(engine, path)
    with reading(engine) as session:
        assert list_saes(session) == []


def test_an_sae_of_that_name_with_other_facts_is_refused(engine: Engine, tmp_path: Path) -> None:
    a.catalogue(engine)
    with pytest.raises(BadInput, match=r"tiny.resid_post.3. of the database has .*; give another slug"):
        bring_under(engine, write(tmp_path, {"3_1": GOOD}), "tiny.resid_post")


def bring_under(engine: Engine, path: Path, prefix: str) -> None:
    with writing(engine) as session:
        session.execute(SaeRow.__table__.update().values(slug=f"{prefix}.3"))
        import_safe_sail(session, read_safe_sail(path), prefix=prefix, sae_id=path.name, run_id=a.RUN)


def test_our_own_explanations_leave_with_the_judges_score(engine: Engine, tmp_path: Path) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        save_explanations(session, [a.explanation(1, "fires on bombs"), a.explanation(2)], run_id=a.RUN)
        save_explanation_scores(session, [a.explanation_score(1, 0.75)], run_id=a.RUN)
    out = tmp_path / "ours.json"
    with reading(engine) as session:
        assert export_safe_sail(session, [a.SAE], out, explainer="lexical") == (1, 1)
    assert json.loads(out.read_text()) == {
        "3_1": {"explanation": "fires on bombs", "correlation_score": 0.75, "tag_list": []}
    }


def test_an_export_overwrites_nothing_and_leaves_nothing_half_written(engine: Engine, tmp_path: Path) -> None:
    a.catalogue(engine)
    out = tmp_path / "out.json"
    with reading(engine) as session:
        with pytest.raises(ExportRefused, match="nothing explained and scored by `safe-sail-release`"):
            export_safe_sail(session, [a.SAE], out)
        assert list(tmp_path.glob("*.json*")) == []
        assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
        out.write_text("precious")
        with pytest.raises(ExportRefused, match="exists already; nothing is overwritten"):
            export_safe_sail(session, [a.SAE], out)
        with pytest.raises(ExportRefused, match=r"is at layer 3, as .* is; this format knows features by layer alone"):
            export_safe_sail(session, [a.SAE, a.SAE], tmp_path / "two.json")
    assert out.read_text() == "precious"


def write(folder: Path, content: object) -> Path:
    path = folder / "given.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path
