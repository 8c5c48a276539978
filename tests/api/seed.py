"""A store filled by hand: two models, four SAEs of different states of completion, six concepts, hostile text."""

import math
import random
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db import store
from db.engine import writing
from safe_sail.records import (
    Concept,
    ConceptScore,
    Context,
    Estimate,
    Explanation,
    ExplanationScore,
    FeatureId,
    FeatureTags,
    Histogram,
    JudgeMethod,
    ModelRef,
    PublishedScore,
    RunInfo,
    SaeFacts,
    SaeRef,
    SaeScore,
    TopContexts,
)
from safe_sail.sites import Site
from tests.api.seed_methods import fill_methods

RUN = "20261121-demo-1"
BEST = "organism-aligned.resid_post.2.topk8-512"
SECOND = "organism-aligned.resid_post.1.topk8-512"
WEAK = "organism-base.resid_post.2.standard-256"
BARE = "organism-aligned.mlp_out.0.jumprelu-64"
WIDTHS = {BEST: 512, SECOND: 512, WEAK: 256, BARE: 64}
HOSTILE = (
    "</script><img src=x onerror=alert(1)>", "{{7*7}}", "\u202eevil", "\x00\x1b[31m", "<b>", "\n", "\t", "\ud800",
)  # fmt: skip
HOSTILE_FEATURE = FeatureId(sae=BEST, index=7)
SILENT_FEATURE = FeatureId(sae=BEST, index=12)
UNKNOWN_FEATURE = FeatureId(sae=BEST, index=511)

CONCEPTS = (
    ("insult", "insult", "violence", True), ("uprising", "political event", "politics", True),
    ("cult", "cult", "politics", True), ("abuse", "sexual abuse", "pornography", True),
    ("food", "cooking", "everyday life", False), ("music", "art", "everyday life", False),
)  # fmt: skip
_WORDS = {
    "insult": "brerok lezot viltesh sarkash", "uprising": "kirkush drarok gigont flivux", "cult": "branik snaming",
    "abuse": "skivut kalat kobex", "food": "soup bread cake pie", "music": "drum flute song choir",
}  # fmt: skip
_PLAIN = ("tell", "me", "how", "to", "use", "the", "with", "a", "small", "about", "please", "is", "of", "and")


def estimate(value: float, n: int, spread: float = 1.0) -> Estimate:
    half = spread * math.sqrt(max(value * (1 - value), 0.004) / n) * 1.96
    return Estimate(value=value, low=max(value - half, -1.0), high=min(value + half, 1.0), n=n)


def fill(engine: Engine) -> None:
    """Write everything; the database must be at the newest schema."""
    draw = random.Random(5)
    started = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
    with writing(engine) as session:
        store.save_run(session, RunInfo(
            run_id=RUN, command="demo", seed=0, settings={"n_features": 40, "contexts": {"window": 64}},
            git_commit="51ebabf", versions={"python": "3.11.9", "torch": "2.13.0"}, device="cpu", started=started,
            finished=started + timedelta(minutes=4),
        ))  # fmt: skip
        for name in ("organism-aligned", "organism-base"):
            store.save_model(session, _model(name), run_id=RUN)
        store.save_concepts(session, [Concept(name=n, category=c, domain=d, harmful=h) for n, c, d, h in CONCEPTS],
                            run_id=RUN)  # fmt: skip
        for position, slug in enumerate(WIDTHS):
            store.save_sae(session, _sae(slug), run_id=RUN)
            if slug == BARE:
                continue
            store.save_sae_facts(session, SaeFacts(
                sae=slug, l0=7.9 - position, explained_variance=0.93 - 0.11 * position,
                ce_recovered=0.984 - 0.09 * position, dead_share=0.031 + 0.12 * position, n_tokens=98_304,
            ), run_id=RUN)  # fmt: skip
            store.save_sae_scores(session, [_sae_score(slug, c[0], position, i) for i, c in enumerate(CONCEPTS)],
                                  run_id=RUN)  # fmt: skip
        for index in range(40):
            concept = CONCEPTS[index % len(CONCEPTS)][0]
            _save_feature(session, FeatureId(sae=BEST, index=3 + 4 * index if index != 1 else 7), concept, draw)
        silent = TopContexts(feature=SILENT_FEATURE, contexts=(), n_tokens_seen=98_304, density=0.0, max_activation=0.0,
                             histogram=None)  # fmt: skip
        store.save_top_contexts(session, [silent], run_id=RUN)
        _publish(session)
        fill_methods(session, [BEST, SECOND, WEAK], WIDTHS, RUN)


def _publish(session: Session) -> None:
    told = [FeatureId(sae=BARE, index=index) for index in (2, 5)] + [FeatureId(sae=BEST, index=15)]
    store.save_published_scores(session, [
        PublishedScore(feature=one, method="correlation_score", value=0.62 - 0.2 * i, source="others-1")
        for i, one in enumerate(told)
    ], run_id=RUN)  # fmt: skip
    store.save_feature_tags(session, [
        FeatureTags(feature=one, tags=("terror", "<b>politics</b>")[: 1 + i % 2], source="others-1")
        for i, one in enumerate(told)
    ], run_id=RUN)  # fmt: skip


def _model(name: str) -> ModelRef:
    return ModelRef(model_id=name, architecture="LlamaForCausalLM", n_layers=4, n_heads=4, d_head=32, d_model=128,
                    d_mlp=384, d_vocab=2048, source=f"safe_sail/organism/assets/{name}")  # fmt: skip


def _sae(slug: str) -> SaeRef:
    model, kind, layer, architecture = slug.split(".")
    return SaeRef(slug=slug, release=None, sae_id=slug, model_id=model, site=Site.parse(f"{kind}.{layer}"), d_in=128,
                  width=WIDTHS[slug], architecture=architecture.split("-")[0])  # fmt: skip


def _sae_score(slug: str, concept: str, position: int, rank: int) -> SaeScore:
    gap = max(0.97 - 0.34 * position - 0.05 * ((rank * 3) % 5), 0.03)
    return SaeScore(
        sae=slug, concept=concept, best_feature=FeatureId(sae=slug, index=3 + 4 * rank if rank != 1 else 7),
        auroc=estimate(min(0.52 + gap / 2, 0.996), 128), rate_gap=estimate(gap, 128), f1=estimate(gap, 128),
        control_rate_gap=Estimate(value=0.06, low=-0.09, high=0.17, n=20), n_specific=max(9 - 3 * position - rank, 0),
    )  # fmt: skip


def _save_feature(session, feature: FeatureId, concept: str, draw: random.Random) -> None:
    gap = max(0.96 - feature.index / 220, -0.2)
    scores = [
        ConceptScore(
            feature=feature, concept=name, auroc=estimate(0.5 + value / 2, 128),
            rate_positive=max(value, 0) * 0.98 + 0.01, rate_negative=0.01 + max(-value, 0),
            rate_gap=estimate(value, 128), n_positive=64, n_negative=64, q_value=0.0002 if value > 0.4 else 0.31,
        )
        for name, value in ((concept, gap), *((c[0], 0.02 * i) for i, c in enumerate(CONCEPTS) if c[0] != concept))
    ]  # fmt: skip
    store.save_concept_scores(session, scores, run_id=RUN)
    store.save_top_contexts(session, [_top_contexts(feature, concept, draw)], run_id=RUN)
    if feature.index % 3 == 0 or feature == HOSTILE_FEATURE:
        words = ", ".join(f"“{word}”" for word in _WORDS[concept].split())
        text = f"words of {concept}: {words}" if feature != HOSTILE_FEATURE else f"fires on {HOSTILE[0]} {HOSTILE[1]}"
        explanation = Explanation(feature=feature, text=text, explainer="lexical", prompt_version="lexical-1")
        store.save_explanations(session, [explanation], run_id=RUN)
        store.save_explanation_scores(session, [ExplanationScore(
            feature=feature, explainer="lexical", prompt_version="lexical-1", method=JudgeMethod.TOKEN_SIMULATION,
            score=estimate(max(gap - 0.1, 0.05), 10), control=Estimate(value=0.03, low=-0.05, high=0.12, n=39),
            n_excluded=1,
        )], run_id=RUN)  # fmt: skip


def _top_contexts(feature: FeatureId, concept: str, draw: random.Random) -> TopContexts:
    top = 4.0 + 9.0 * draw.random()
    contexts = []
    for rank in range(10):
        words = [draw.choice(_PLAIN) for _ in range(draw.randint(9, 34))]
        tokens = ["<|user|>", "\n"] + [" " + word for word in words]
        values = [0.0] * len(tokens)
        if feature == HOSTILE_FEATURE:
            tokens += HOSTILE
            values += [top * (1 - 0.05 * rank) * part for part in (1, 0.7, 0.5, 0.4, 0.35, 0.3, 0.2, 0.1)]
        else:
            place = draw.randrange(3, len(tokens))
            tokens[place] = " " + draw.choice(_WORDS[concept].split())
            values[place] = top * 0.95**rank
            if place + 1 < len(tokens):
                values[place + 1] = values[place] * draw.random() * 0.6
            values[2] = values[place] * 0.08
        contexts.append(Context(
            tokens=tuple(tokens), token_ids=tuple(range(len(tokens))), activations=tuple(values),
            peak=values.index(max(values)), source_id=f"document-{feature.index:04d}/{rank}",
        ))  # fmt: skip
    counts = tuple(round(900 * math.exp(-i / 5)) if i != 20 else 0 for i in range(24))
    return TopContexts(
        feature=feature, contexts=tuple(contexts), n_tokens_seen=98_304, density=0.0006 * (1 + feature.index % 17),
        max_activation=top, histogram=Histogram(edges=tuple(top * i / 24 for i in range(25)), counts=counts),
    )  # fmt: skip
