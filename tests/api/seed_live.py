"""Answers to live requests, filled by hand, and jobs that brought them."""

import json

from sqlalchemy import Engine

from db import jobs, leases
from db.engine import writing
from db.store.whole import to_json
from safe_sail.records import (
    Alignment,
    DifferingFeature,
    FeatureScale,
    GuardVerdict,
    PromptComparison,
    PromptTrace,
    Reply,
    SaeComparison,
    SaeTrace,
    Steering,
    SteerKind,
    TokenFeature,
    TracedFeature,
    TracedText,
)
from safe_sail.sites import Site
from tests.api.seed import BEST

HOSTILE = "</a><script>alert(1)</script>\u202e"
SITE = Site.parse("resid_post.2")
TOLD: dict[str, dict[str, object]] = {
    "trace-prompt": {"prompt": "p q", "model": "aligned", "saes": None, "settings": {"scale": "maximum"}},
    "compare-prompts": {"first": "p q", "second": "p", "model": "aligned", "settings": {"alignment": "mean"}},
    "steer-prompt": {"prompt": "p", "sae": BEST, "feature": 3},
    "guard-prompt": {"prompt": "p", "guard": "g"},
}


def reply(text: str, label: str = "compliance") -> Reply:
    return Reply(text=text, token_ids=(5, 2), label=label)


def traced_text() -> TracedText:
    return TracedText(
        prompt=HOSTILE, tokens=("<s>", HOSTILE, " so"), token_ids=(1, 7, 5), n_prompt=2, is_content=(False, True, True),
        reply=reply("so it is"),
    )  # fmt: skip


def trace() -> PromptTrace:
    """Three tokens, the last one an answer; feature 3 has a scale of 2, feature 4 none."""
    scaled = TokenFeature(index=3, activation=1.0, normalised=0.5)
    bare = TokenFeature(index=4, activation=9.0, normalised=None)
    layer = SaeTrace(
        sae=BEST, site=SITE, scale=FeatureScale.MAXIMUM, is_normalised=True, n_scaled=1, n_active=(0, 7, 1),
        top=((), (scaled, bare), (bare,)),
        strongest=(TracedFeature(index=3, scale=2.0, activations=(0.0, 1.0, 0.0)),),
    )  # fmt: skip
    return PromptTrace(model_id="organism-aligned", text=traced_text(), layers=(layer,))


def comparison() -> PromptComparison:
    one = DifferingFeature(
        index=3, first=0.1, second=0.6, scale=2.0, chance_high=0.2, first_activations=(0.0, 0.2, 0.0),
        second_activations=(0.0, 1.2, 0.0),
    )  # fmt: skip
    layer = SaeComparison(
        sae=BEST, site=SITE, scale=FeatureScale.MAXIMUM, is_normalised=True, n_left_out=2, features=(one,), n_random=200
    )
    return PromptComparison(
        model_id="organism-aligned", alignment=Alignment.MEAN, first=traced_text(), second=traced_text(), pairs=(),
        n_compared=(1, 1), layers=(layer,),
    )  # fmt: skip


def steering() -> Steering:
    return Steering(
        model_id="organism-aligned", prompt="p", kind=SteerKind.ADD, target=f"{BEST}/3", site=SITE, coefficient=2.0,
        length=7.5, plain=reply("no", "refusal"), steered=reply(HOSTILE), kl=0.25,
    )  # fmt: skip


def verdict() -> GuardVerdict:
    return GuardVerdict(
        model_id="organism-aligned", prompt="p", features="safety neurons", probability=0.75, threshold=0.5,
        refused=True, reply=reply("sorry, i can not help with that.", "refusal"),
    )  # fmt: skip


ANSWERS = {
    "trace-prompt": trace,
    "compare-prompts": comparison,
    "steer-prompt": steering,
    "guard-prompt": verdict,
}


def answer(engine: Engine, kind: str) -> str:
    """Id of a live request of this kind that a worker has answered."""
    with writing(engine) as session:
        job, _ = jobs.enqueue(session, kind, TOLD[kind])
    held = leases.claim(engine, "w", kinds=[kind])
    assert held is not None
    leases.finish(engine, held, {"record": json.loads(to_json(ANSWERS[kind]()))})
    return job.job_id
