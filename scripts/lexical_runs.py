"""Lexical explanations that the database holds, simulated on its contexts without asking anyone."""

from collections.abc import Mapping

from sqlalchemy import Engine

from safe_sail.evaluation.draws import named_generator
from safe_sail.features.baseline import judge_lexically
from safe_sail.features.judge import CONSTANT, NO_CONTEXT, NO_CONTROL, Judged, NotJudged
from safe_sail.features.lexical import LexicalExplanation
from safe_sail.records import Explanation, FeatureId, JudgeMethod
from scripts import llm_runs


def simulated(
    engine: Engine,
    explanation: Explanation,
    words: Mapping[FeatureId, LexicalExplanation],
    *,
    seed: int,
    method: JudgeMethod,
) -> Judged | NotJudged:
    """Score of a lexical explanation; its predictions are known where its contexts still are."""
    feature = explanation.feature

    def failed(reason: str, message: str) -> NotJudged:
        return NotJudged(feature, reason, message, None, llm_runs.FREE)

    if feature not in words:
        return failed(
            llm_runs.NOT_KEPT, "the contexts it was made from are not in the database any more; explain it again."
        )
    others = [other for place, other in words.items() if place != feature]
    if not others:
        return failed(NO_CONTROL, "there is no explanation of another feature to compare with.")
    contexts = llm_runs.kept_contexts(engine, feature).halves.judge.all
    if not contexts:
        return failed(NO_CONTEXT, "no context is left to judge it.")
    score = judge_lexically(
        feature, words[feature], others, contexts, generator=named_generator(seed, str(feature)),
        method=method,
    )  # fmt: skip
    if score is None:
        return failed(CONSTANT, f"truth or prediction is the same everywhere in {len(contexts)} contexts.")
    return Judged(score, 0, llm_runs.FREE)
