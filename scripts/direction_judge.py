"""A language model as second judge of the replies of `safe-sail find-refusal-direction`, beside the phrase judge."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from safe_sail.errors import BadInput
from safe_sail.evaluation.calibration import Calibration
from safe_sail.evaluation.llm_judge import (
    LABELS,
    VERSION,
    LlmLabels,
    Said,
    agreement_with_phrases,
    label_replies,
    labelled_shares,
)
from safe_sail.evaluation.refusal import Rate, label_shares
from safe_sail.llm.budget import Budget
from safe_sail.llm.client import OpenAiClient
from safe_sail.llm.exchange import Spending
from safe_sail.llm.pricing import PriceTable, load_prices
from safe_sail.settings import LlmSettings
from scripts.direction_report import Section
from scripts.options import llm_key


class Heard(NamedTuple):
    """Replies under one intervention."""

    prompts: str
    intervention: str
    said: tuple[Said, ...]


class ReplyJudge(NamedTuple):
    """Who judges."""

    llm: LlmSettings
    prices: PriceTable


def judge_of(
    base_url: str | None,
    model: str | None,
    *,
    budget_tokens: int | None,
    budget_money: float | None,
    cache: Path | None,
    prices: Path | None,
) -> ReplyJudge | None:
    """The judge that the options name; None where they name none.

    Raises:
        BadInput: one of endpoint and model is missing while another option of the judge is given.
        PriceUnknown: the budget is in money, and no price of the model is known.
    """
    if base_url is None and model is None and (budget_tokens, budget_money, cache) == (None, None, None):
        return None
    if base_url is None or model is None:
        raise BadInput("a judge of replies is asked over an endpoint: give --judge-base-url and --judge-model.")
    llm = LlmSettings(
        base_url=base_url, model=model, budget_tokens=budget_tokens, budget_money=budget_money,
        cache_path=None if cache is None else str(cache),
    )  # fmt: skip
    return judge_with(llm, prices)


def judge_with(llm: LlmSettings, prices: Path | None = None) -> ReplyJudge:
    """The judge that is asked so.

    Raises:
        PriceUnknown: the budget is in money, and no price of the model is known.
    """
    table = load_prices(prices)
    Budget.of(llm, table.price_of(base_url=llm.base_url, model=llm.model))  # now, and not after minutes of searching
    return ReplyJudge(llm, table)


def judge_replies(judge: ReplyJudge, heard: Sequence[Heard]) -> Section:
    """What the judge says of each intervention's replies beside the phrase judge, and how far the two agree."""
    everything = [said for one in heard for said in one.said]
    found, spent = asyncio.run(ask_labels(judge, everything))
    lines = [f"replies judged by {judge.llm.model} ({VERSION}), phrase judge in brackets:"]
    rows: list[dict[str, Any]] = []
    first = 0
    for one in heard:
        labels = found.labels[first : first + len(one.said)]
        first += len(one.said)
        ours, theirs = label_shares([said.reply for said in one.said]), labelled_shares(labels)
        n_failed = labels.count(None)
        told = ", ".join(
            f"{label} {_interval(theirs[label]) if theirs else '-'} ({ours[label].share:.3f})" for label in LABELS
        )
        lines.append(f"{one.prompts:18} {one.intervention:12} {told}  n={len(labels) - n_failed}, {n_failed} failed")
        rows.append(
            {"prompts": one.prompts, "intervention": one.intervention, "n": len(labels) - n_failed, "failed": n_failed,
             "llm_judge": _plain(theirs), "phrase_judge": _plain(ours)}
        )  # fmt: skip
    agreement = agreement_with_phrases(everything, found.labels)
    lines += [*_agreement_lines(agreement.same, agreement.two_way), *_cost_lines(judge, found, spent)]
    plain = {
        "model": judge.llm.model, "prompt_version": VERSION, "replies": rows, "failed": dict(found.failed),
        "agreement": None if agreement.same is None else agreement.same._asdict(),
        "kappa": None if agreement.two_way is None else agreement.two_way.kappa,
        "attempts": spent.attempts, "tokens": spent.tokens, "cost": None if spent.cost is None else float(spent.cost),
    }  # fmt: skip
    return Section(plain, lines)


async def ask_labels(judge: ReplyJudge, replies: Sequence[Said]) -> tuple[LlmLabels, Spending]:
    """The judge's labels of the replies, and what they cost."""
    async with OpenAiClient(judge.llm, api_key=llm_key(), prices=judge.prices) as client:
        return await label_replies(replies, client), client.total


def _agreement_lines(same: Rate | None, two_way: Calibration | None) -> list[str]:
    if same is None:
        return ["agreement with the phrase judge: unknown, no reply got a label"]
    kappa = "-" if two_way is None or two_way.kappa is None else f"{two_way.kappa:.3f}"
    return [f"agreement with the phrase judge: {_interval(same)} of n={same.n}; refusal or compliance: kappa {kappa}"]


def _cost_lines(judge: ReplyJudge, found: LlmLabels, spent: Spending) -> list[str]:
    reasons = ", ".join(f"({reason} {n})" for reason, n in Counter(found.failed).most_common())
    price = f"no price of it at {urlsplit(judge.llm.base_url).hostname}" if spent.cost is None else f"${spent.cost:.4f}"
    return [
        f"without a label: {sum(found.failed.values())} of {len(found.labels)} replies {reasons}".rstrip(),
        f"asked {spent.attempts} times, {spent.tokens} tokens at most, {spent.cache_hits} from the cache; {price}",
    ]


def _plain(shares: Any) -> dict[str, Any]:
    return {label: rate._asdict() for label, rate in shares.items()}


def _interval(rate: Rate) -> str:
    return f"{rate.share:.3f} [{rate.low:.3f}, {rate.high:.3f}]"
