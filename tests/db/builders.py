"""Small valid records for tests that are about something else."""

from datetime import UTC, datetime

from sqlalchemy import Engine

from db.engine import writing
from db.store import save_concepts, save_model, save_run, save_sae
from safe_sail.records import (
    Concept,
    ConceptScore,
    Context,
    ContextSample,
    Estimate,
    Explanation,
    ExplanationScore,
    FeatureId,
    Histogram,
    JudgeMethod,
    ModelRef,
    RunInfo,
    SaeFacts,
    SaeRef,
    SaeScore,
    TopContexts,
)
from safe_sail.sites import Site

SAE = "tiny.resid_post.3.topk4-16"
WIDTH = 16
RUN, LATER_RUN = "run-1", "run-2"
CONCEPTS = ("abuse", "cult", "weapons")


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.25, high=value + 0.25, n=64)


def run(run_id: str = RUN) -> RunInfo:
    started = datetime(2026, 11, 21, 8, 15, tzinfo=UTC)
    return RunInfo(
        run_id=run_id, command="demo", seed=0, settings={"n_contexts": 20}, git_commit=None, versions={},
        device="cpu", started=started,
    )  # fmt: skip


def model() -> ModelRef:
    return ModelRef(
        model_id="tiny", architecture="LlamaForCausalLM", n_layers=4, n_heads=2, d_head=4, d_model=8, d_mlp=32,
        d_vocab=64, source="tiny",
    )  # fmt: skip


def sae(slug: str = SAE, width: int = WIDTH, site: str = "resid_post.3") -> SaeRef:
    return SaeRef(
        slug=slug, release=None, sae_id="folder", model_id="tiny", site=Site.parse(site), d_in=8, width=width,
        architecture="topk",
    )  # fmt: skip


def facts(l0: float = 4.0) -> SaeFacts:
    return SaeFacts(sae=SAE, l0=l0, explained_variance=0.5, ce_recovered=0.75, dead_share=0.25, n_tokens=1000)


def feature(index: int) -> FeatureId:
    return FeatureId(sae=SAE, index=index)


def sae_score(concept: str = "weapons", best: int = 3, gap: float = 0.5) -> SaeScore:
    return SaeScore(
        sae=SAE, concept=concept, best_feature=feature(best), auroc=estimate(0.75), rate_gap=estimate(gap),
        f1=estimate(0.5), control_rate_gap=estimate(0.0), n_specific=1,
    )  # fmt: skip


def concept_score(index: int, concept: str = "weapons", gap: float = 0.5, auroc: float = 0.75) -> ConceptScore:
    return ConceptScore(
        feature=feature(index), concept=concept, auroc=estimate(auroc), rate_positive=0.75, rate_negative=0.25,
        rate_gap=estimate(gap), n_positive=32, n_negative=32, q_value=0.01,
    )  # fmt: skip


def top_contexts(index: int, density: float = 0.125, n: int = 2, n_tokens: int = 3) -> TopContexts:
    found = [
        Context(
            tokens=tuple(f" word{t}" for t in range(n_tokens)),
            token_ids=tuple(range(n_tokens)),
            activations=(n - c + 1.0, *[0.5] * (n_tokens - 1)),
            peak=0,
            source_id=f"document-{c}:0",
        )
        for c in range(n)
    ]
    return TopContexts(
        feature=feature(index), contexts=tuple(found), n_tokens_seen=1000, density=density, max_activation=n + 1.0,
        histogram=Histogram(edges=(0.0, 1.0, 4.0), counts=(5, 3)),
    )  # fmt: skip


def context_sample(index: int, n_tokens: int = 3) -> ContextSample:
    """One context of each kind: active, active by chance, and a near miss."""

    def one(kind: str, peak: float) -> Context:
        return Context(
            tokens=tuple(f" {kind}{t}" for t in range(n_tokens)), token_ids=tuple(range(n_tokens)),
            activations=(peak, *[0.0] * (n_tokens - 1)), peak=0, source_id=f"{kind}:0",
        )  # fmt: skip

    return ContextSample(
        feature=feature(index), spread=(one("spread", 1.5),), random=(one("random", 0.5),),
        near_misses=(one("near", 0.0),), quantile_999=0.75,
    )  # fmt: skip


def explanation(index: int, text: str = "fires on weapons", explainer: str = "lexical") -> Explanation:
    return Explanation(feature=feature(index), text=text, explainer=explainer, prompt_version="1")


def explanation_score(index: int, value: float = 0.5, explainer: str = "lexical") -> ExplanationScore:
    return ExplanationScore(
        feature=feature(index), explainer=explainer, prompt_version="1", method=JudgeMethod.TOKEN_SIMULATION,
        score=estimate(value), control=estimate(0.0), n_excluded=0,
    )  # fmt: skip


def catalogue(engine: Engine) -> None:
    """Two runs, the model, the SAE and the concepts: what results refer to."""
    with writing(engine) as session:
        save_run(session, run())
        save_run(session, run(LATER_RUN))
        save_model(session, model(), run_id=RUN)
        save_sae(session, sae(), run_id=RUN)
        named = [Concept(name=name, category="harm", domain="safety", harmful=True) for name in CONCEPTS]
        save_concepts(session, named, run_id=RUN)
