"""`safe-sail plot-features`: files for what is kept, rank correlations as scipy has them, nothing drawn of nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from db import store
from db.engine import make_engine, writing
from db.migrate import upgrade
from safe_sail.errors import BadInput
from safe_sail.records import JudgeMethod
from scripts.plot_features import plot_features
from tests.db import builders

TOKENS = [0.9, 0.5, 0.7, 0.2, 0.4]
SEGMENTS = [0.8, 0.6, 0.6, 0.3, 0.1]


def kept(path: Path, n_both: int) -> str:
    """A database of five explained features, the first n judged by two methods."""
    url = f"sqlite:///{path / 'x.db'}"
    engine = make_engine(url)
    upgrade(engine)
    builders.catalogue(engine)
    with writing(engine) as session:
        store.save_top_contexts(session, [builders.top_contexts(n) for n in range(5)], run_id=builders.RUN)
        store.save_explanations(session, [builders.explanation(n) for n in range(5)], run_id=builders.RUN)
        for method, values in ((JudgeMethod.TOKEN_SIMULATION, TOKENS), (JudgeMethod.SEGMENT_SIMULATION, SEGMENTS)):
            n = 5 if method is JudgeMethod.TOKEN_SIMULATION else n_both
            scores = [replace(builders.explanation_score(i, values[i]), method=method) for i in range(n)]
            store.save_explanation_scores(session, scores, run_id=builders.RUN)
    engine.dispose()
    return url


def test_histograms_and_compared_scores_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plot_features(tmp_path / "figures", database=kept(tmp_path, 5), n_features=3, as_json=True)
    said = json.loads(capsys.readouterr().out)
    names = [Path(path).name for path in said["figures"]]
    assert names == [f"{said['sae']}.{end}.png" for end in ("histograms", "token_simulation.segment_simulation")]
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in said["figures"])
    (rank,) = said["ranks"]
    assert rank["rank"] == pytest.approx(spearmanr(TOKENS, SEGMENTS).statistic)
    assert rank["low"] <= rank["rank"] <= rank["high"]
    assert rank["n"] == 5


def test_too_few_shared_features_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plot_features(tmp_path / "figures", database=kept(tmp_path, 2))
    printed = capsys.readouterr().out
    assert "no two methods have judged the same 3 explanations" in printed
    assert [path.name.split(".")[-2] for path in (tmp_path / "figures").iterdir()] == ["histograms"]


def test_without_contexts_there_is_nothing_to_draw(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    engine = make_engine(url)
    upgrade(engine)
    engine.dispose()
    with pytest.raises(BadInput, match="holds no contexts"):
        plot_features(tmp_path / "figures", database=url)
    assert not (tmp_path / "figures").exists()
