"""No text both explains and judges, whatever is kept, of whichever feature and in whichever run."""

import pytest

from safe_sail.features.held_out import divided, judges
from safe_sail.records import Context, ContextSample, FeatureId, TopContexts
from tests.feature_samples import a_context


def texts(contexts: list[Context]) -> set[str]:
    return {"".join(context.tokens) for context in contexts}


def loud(text: str, peak: float, source: str) -> Context:
    return a_context(text, {text.split()[0]: peak}, source)


def top_of(index: int, contexts: list[Context]) -> TopContexts:
    return TopContexts(
        feature=FeatureId(sae="s", index=index), contexts=tuple(contexts), n_tokens_seen=1000, density=0.1,
        max_activation=9.0, histogram=None,
    )  # fmt: skip


def sample_of(index: int, spread: list[Context], random: list[Context], near: list[Context]) -> ContextSample:
    return ContextSample(
        feature=FeatureId(sae="s", index=index), spread=tuple(spread), random=tuple(random), near_misses=tuple(near),
        quantile_999=1.0,
    )  # fmt: skip


def kept(index: int, shift: int) -> tuple[TopContexts, ContextSample]:
    """Contexts of one feature; the kinds share texts with each other and with those of features of another shift."""
    names = [f"word{n} stands here" for n in range(shift, shift + 60)]
    top = [loud(text, 9.0 - place / 10, f"top{place}") for place, text in enumerate(names[:20])]
    spread = [loud(text, 2.0, f"spread{place}") for place, text in enumerate(names[15:35])]
    random = [a_context(text, None, f"random{place}") for place, text in enumerate(names[30:50])]
    near = [a_context(text, None, f"near{place}") for place, text in enumerate(names[45:60])]
    return top_of(index, top), sample_of(index, spread, random, near)


def test_no_text_of_any_feature_or_run_is_on_both_sides():
    shown: set[str] = set()
    judging: set[str] = set()
    for index in range(20):
        halves = divided(*kept(index, shift=7 * index), judged_share=0.5)
        shown |= texts(halves.explain.all)
        judging |= texts(halves.judge.all)
        # collected again on another corpus: fewer, in another order
        top, sample = kept(index, shift=7 * index + 3)
        again = divided(top, sample_of(index, list(sample.spread[::-1]), [], []), judged_share=0.5)
        shown |= texts(again.explain.all)
        judging |= texts(again.judge.all)
    assert not shown & judging
    assert len(shown) > 60 < len(judging)


def test_each_text_comes_once_and_all_come():
    top, sample = kept(0, shift=0)
    halves = divided(top, sample, judged_share=0.5)
    everything = [*halves.explain.all, *halves.judge.all]
    assert len(everything) == len(texts(everything)) == 60
    for side in halves:
        assert all(context.peak_activation > 0 for context in side.active)
        assert all(context.peak_activation == 0 for context in side.silent)
        # where a text is kept as active and as silent, the activation counts
        assert not texts(side.active) & texts(side.silent)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_share_that_judges_is_what_was_asked_for(share: float):
    n = sum(judges(a_context(f"document {n} of many"), share) for n in range(4000))
    assert n / 4000 == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)  # four standard errors


def test_a_larger_share_only_adds_judges():
    contexts = [a_context(f"document {n} of many") for n in range(500)]
    few, many = ({place for place, c in enumerate(contexts) if judges(c, share)} for share in (0.3, 0.6))
    assert few < many


def test_contexts_without_a_sample_are_divided_too_and_silent_imports_stay_silent():
    contexts = [loud(f"word{n} here", 5.0, str(n)) for n in range(9)] + [a_context("nothing here", None, "9")]
    halves = divided(top_of(0, contexts), None, judged_share=0.5)
    assert len(halves.explain.active) + len(halves.judge.active) == 9
    assert len(halves.explain.silent) + len(halves.judge.silent) == 1
