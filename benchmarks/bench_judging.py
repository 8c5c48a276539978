"""What does judging by segments cost beside judging by tokens, on the same contexts, and do the scores rank alike?

Two AMD EPYC cores shared with other work; Python 3.11, torch 2.13.0+cpu; 2026-11-27. Features, explanations and
contexts of `safe-sail demo` (40 features of each of six SAEs, 239 explained, judging halves only); true answers.

| contexts in a call | segments: prompt + answer | tokens: prompt + answer | ratio (97.5 % of features below) |
|---|---|---|---|
| 10 | 824 + 60 | 2,977 + 451 | 0.258 (0.275) |
| 20, the default | 1,356 + 114 | 5,573 + 918 | 0.226 (0.243) |

Tokens are counted by the estimate of `llm/tokens.py`. `--ranks` takes a tiktoken file of a real vocabulary: by Qwen's,
on 60 of the features, 718 + 38 against 1,618 + 215 at ten contexts (0.41), and 1,230 + 76 against 2,999 + 461 at twenty
(0.38). Real vocabularies join the punctuation of the token judge's prompt, which the estimate counts mark by mark.

Rank correlation with token scores over features, 95 % by features drawn again; the lexical simulator predicts, since no
language model was at hand: segments 0.871 [0.832, 0.899] (n=201), detection 0.675 [0.597, 0.737] (n=238), fuzzing
0.437 [0.320, 0.543] (n=239). 38 features have no segment score: no word fires more often than not there.

Fewer contexts, by Qwen's vocabulary; cost as a share of tokens on twenty contexts, rank correlation with these scores:

| contexts | segments: cost, rank (n) | tokens: cost, rank (n) |
|---|---|---|
| 4 | 0.12, 0.65 [0.53, 0.73] (157) | 0.25, 0.85 [0.80, 0.90] (213) |
| 8 | 0.19, 0.73 [0.65, 0.79] (179) | 0.44, 0.94 [0.91, 0.95] (229) |
| 10 | 0.22, 0.78 [0.71, 0.83] (185) | 0.53, 0.96 [0.94, 0.97] (233) |
| 14 | 0.28, 0.81 [0.75, 0.85] (191) | 0.72, 0.97 [0.96, 0.98] (238) |
| 20 | 0.38, 0.85 [0.81, 0.88] (194) | 1 |

Several features in a call of segments save 6 % (two), 9 % (four) and 11 % (eight) at twenty contexts, 13, 19 and 22 %
at eight: the words of the contexts are most of the cost. What it does to a model's answers is not measured.

So segments cost under 0.4 of tokens and rank alike where the same prediction is scored at both levels. How alike a
language model's answers to the two prompts are is not measured here.

Run: safe-sail demo --database sqlite:///found.db && python benchmarks/bench_judging.py sqlite:///found.db
"""

import argparse
import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from db import store
from db.engine import make_engine, reading
from safe_sail.evaluation.draws import named_generator
from safe_sail.features import lexical
from safe_sail.features.baseline import judge_lexically, write_lexically
from safe_sail.features.held_out import divided
from safe_sail.features.judge_items import items_in_turn
from safe_sail.features.judge_prompts import JudgedFeature, segments_of, segments_prompt, tokens_prompt, true_levels
from safe_sail.features.prompts import Window
from safe_sail.llm.tokens import estimate_tokens
from safe_sail.records import Context, FeatureId, JudgeMethod
from safe_sail.settings import LexicalSettings

SHARE = LexicalSettings().judged_share
N_BOOTSTRAP = 2000
Count = Callable[[str], int]


def kept(url: str) -> list[tuple[FeatureId, str, list[Context], list[Context], float]]:
    """Features with a lexical explanation: text, explaining contexts, judging contexts, scale."""
    found = []
    with reading(make_engine(url, read_only=True)) as session:
        for listing in store.list_saes(session):
            slug = listing.sae.slug
            done = store.features_done(session, slug, store.FeatureKind.EXPLANATIONS, explainer=lexical.EXPLAINER)
            for index in sorted(done):
                feature = FeatureId(sae=slug, index=index)
                top, sample = store.load_top_contexts(session, feature), store.load_context_sample(session, feature)
                (said,) = (k.record for k in store.load_explanations(session, feature))
                assert top is not None
                assert sample is not None
                halves = divided(top.record, sample.record, judged_share=SHARE)
                found.append((feature, said.text, halves.explain.all, halves.judge.all, top.record.max_activation))
    return found


def one_cost(text: str, contexts: tuple[Context, ...], scale: float, count: Count) -> tuple[int, int, int, int]:
    """Prompt and answer tokens by segments, then by tokens; the answers are the true ones."""
    judged = [JudgedFeature(text, contexts)]
    by_segment, by_token = segments_prompt(judged), tokens_prompt(judged)
    active = [[n for n, segment in enumerate(segments_of(c), 1) if segment.active] for c in contexts]
    levels = [[{"token": n, "level": v} for n, v in enumerate(true_levels(c, scale), 1) if v] for c in contexts]
    answers = [{"active": active}, {"texts": [{"id": n, "active": a} for n, a in enumerate(levels, 1)]}]
    prompts = [count(prompt.system) + count(prompt.user) for prompt in (by_segment, by_token)]
    said = [count(json.dumps(answer, separators=(",", ":"))) for answer in answers]
    return prompts[0], said[0], prompts[1], said[1]


def costs(features: list, n_contexts: int, count: Count) -> dict[str, float]:
    rows = []
    for feature, text, _, judging, scale in features:
        items = items_in_turn(judging, Window(), named_generator(0, str(feature)))[:n_contexts]
        if len(items) == n_contexts:
            rows.append(one_cost(text, tuple(item.context for item in items), scale, count))
    table = np.array(rows, dtype=float)
    segments, tokens = table[:, :2].sum(1), table[:, 2:].sum(1)
    means = table.mean(0)
    return {
        "n_features": len(rows), "n_contexts": n_contexts, "prompt_segments": means[0], "answer_segments": means[1],
        "prompt_tokens": means[2], "answer_tokens": means[3], "ratio": segments.sum() / tokens.sum(),
        "ratio_high": float(np.quantile(segments / tokens, 0.975)),
    }  # fmt: skip


def scores(features: list) -> dict[JudgeMethod, np.ndarray]:
    """Score of every feature by every method, NaN where there is none."""
    written = {feature: write_lexically(shown, n_words=6) for feature, _, shown, _, _ in features}
    table: dict[JudgeMethod, list[float]] = {method: [] for method in JudgeMethod}
    for feature, _, _, judging, _ in features:
        words = written[feature]
        assert words is not None
        others = [one for other, one in written.items() if other != feature and other.sae == feature.sae and one][:1]
        for method, found in table.items():
            generator = named_generator(0, str(feature))
            score = judge_lexically(feature, words, others, judging, generator=generator, method=method)
            found.append(np.nan if score is None else score.score.value)
    return {method: np.array(found) for method, found in table.items()}


def rank_correlation(a: np.ndarray, b: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Spearman's rank correlation over features, interval by features drawn again."""
    both = ~np.isnan(a) & ~np.isnan(b)
    a, b = a[both], b[both]
    rng = np.random.default_rng(seed)
    draws = [spearmanr(a[d], b[d]).statistic for d in rng.integers(len(a), size=(N_BOOTSTRAP, len(a)))]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return {"value": float(spearmanr(a, b).statistic), "low": float(low), "high": float(high), "n": len(a)}


def frontier(features: list, count: Count) -> list[dict[str, object]]:
    """Segments on fewer contexts, and tokens on fewer, beside tokens on twenty: cost, and how alike they rank."""
    written = {feature: write_lexically(shown, n_words=6) for feature, _, shown, _, _ in features}
    costs_of: dict[tuple[str, int], list[int]] = {}
    scores_of: dict[tuple[str, int], list[float]] = {}
    for feature, text, _, judging, scale in features:
        words = written[feature]
        items = items_in_turn(judging, Window(), named_generator(0, str(feature)))[:20]
        others = [one for other, one in written.items() if other != feature and other.sae == feature.sae and one][:1]
        if words is None or len(items) < 20:
            continue
        for n in (4, 6, 8, 10, 14, 20):
            shown = tuple(item.context for item in items[:n])
            by_segment, said, by_token, told = one_cost(text, shown, scale, count)
            for name, cost, method in (
                ("segments", by_segment + said, JudgeMethod.SEGMENT_SIMULATION),
                ("tokens", by_token + told, JudgeMethod.TOKEN_SIMULATION),
            ):
                generator = named_generator(0, str(feature))
                score = judge_lexically(feature, words, others, shown, generator=generator, method=method)
                costs_of.setdefault((name, n), []).append(cost)
                scores_of.setdefault((name, n), []).append(np.nan if score is None else score.score.value)
    full, reference = sum(costs_of["tokens", 20]), np.array(scores_of["tokens", 20])
    return [
        {"by": name, "contexts": n, "ratio": sum(costs_of[name, n]) / full,
         "rank": rank_correlation(reference, np.array(scores_of[name, n]))}
        for name, n in costs_of
    ]  # fmt: skip


def shared_calls(features: list, n_contexts: int, count: Count) -> dict[int, float]:
    """Segment tokens a feature where several share a call, as a share of a call each; true answers."""
    found = []
    for feature, text, _, judging, _ in features:
        items = items_in_turn(judging, Window(), named_generator(0, str(feature)))[:n_contexts]
        found.append(JudgedFeature(text, tuple(item.context for item in items)))
    whole = [one for one in found if len(one.contexts) == n_contexts]
    tokens = {}
    for size in (1, 2, 4, 8):
        total = 0
        for first in range(0, len(whole) // 8 * 8, size):
            group = whole[first : first + size]
            prompt = segments_prompt(group)
            active = [[n for n, s in enumerate(segments_of(c), 1) if s.active] for one in group for c in one.contexts]
            answer = json.dumps({"active": active}, separators=(",", ":"))
            total += count(prompt.system) + count(prompt.user) + count(answer)
        tokens[size] = total
    return {size: total / tokens[1] for size, total in tokens.items()}


def counter(path: Path | None) -> Count:
    """Tokens by a tiktoken file of ranks where one is given, else by the estimate of `llm/tokens.py`."""
    if path is None:
        return estimate_tokens
    import tiktoken

    ranks = {base64.b64decode(a): int(b) for a, b in (line.split() for line in path.read_bytes().splitlines())}
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    coder = tiktoken.Encoding("given", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda text: len(coder.encode_ordinary(text))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("database")
    parser.add_argument("--ranks", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    features = kept(given.database)
    count = counter(given.ranks)
    found = scores(features)
    base = found[JudgeMethod.TOKEN_SIMULATION]
    print(json.dumps({
        "costs": [costs(features, n, count) for n in (10, 20)],
        "frontier": frontier(features, count),
        "shared_calls": {n: shared_calls(features, n, count) for n in (8, 20)},
        "rank_correlation_with_token_simulation": {
            str(method): rank_correlation(base, found[method]) for method in list(JudgeMethod)[1:]
        },
        "means": {str(method): float(np.nanmean(values)) for method, values in found.items()},
        "missing": {str(method): int(np.isnan(values).sum()) for method, values in found.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
