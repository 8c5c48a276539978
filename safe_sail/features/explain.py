"""Explanations of features by a language model: every feature ends explained or failed, none twice.

1. Each feature becomes one prompt of a bounded number of tokens.
2. The client asks them all at once; answers are validated, and asked for again once where they do not fit.
3. Results are yielded as they come, so that the caller can store each and resume.
"""

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from decimal import Decimal
from typing import NamedTuple

from pydantic import BaseModel

from safe_sail.errors import BadInput, BadRecord
from safe_sail.features.prompts import (
    EXPLANATION_VERSION,
    ExplanationReply,
    FeatureSamples,
    Window,
    explanation_prompt,
    read_explanations,
)
from safe_sail.llm.client import ChatClient
from safe_sail.llm.exchange import Answered, ChatRequest, Message, Spending
from safe_sail.llm.tokens import estimate_tokens
from safe_sail.records import Explanation, FeatureId
from safe_sail.settings import ExplainSettings

NO_PROMPT = "no_prompt"
"""Reason of a feature that cannot be shown: it has no active context, or none that fits."""


class ExplainTask(NamedTuple):
    """A feature to explain and what may be shown of it; the contexts that judge it are not among these."""

    feature: FeatureId
    samples: FeatureSamples


class LlmExplained(NamedTuple):
    """An explanation and what it cost."""

    explanation: Explanation
    spending: Spending


class NotExplained(NamedTuple):
    """A feature that ended without an explanation."""

    feature: FeatureId
    reason: str
    """A `FailureReason`, or `no_prompt`."""
    message: str
    raw: str | None
    """What the model wrote, if anything came."""
    spending: Spending


def explanation_requests(
    tasks: Iterable[ExplainTask], settings: ExplainSettings
) -> Iterator[ChatRequest | NotExplained]:
    """The request of each feature, for a forecast, a batch file or the client; or why there is none."""
    window = Window(before=settings.tokens_before, after=settings.tokens_after)
    for feature, samples in tasks:
        try:
            prompt = explanation_prompt(
                [samples],
                count_tokens=estimate_tokens,
                max_tokens=settings.max_prompt_tokens,
                n_active=settings.n_active,
                n_silent=settings.n_silent,
                window=window,
            )
        except BadInput as error:
            yield NotExplained(feature, NO_PROMPT, str(error), None, Spending(cost=Decimal(0)))
            continue
        yield ChatRequest(
            request_id=str(feature),
            messages=(Message("system", prompt.system), Message("user", prompt.user)),
            prompt_version=prompt.version,
            reply_type=ExplanationReply,
            check=_check,
            max_tokens=settings.max_reply_tokens,
        )


async def explain_features(
    tasks: Iterable[ExplainTask], client: ChatClient, settings: ExplainSettings
) -> AsyncGenerator[LlmExplained | NotExplained, None]:
    """How each feature ended, in the order in which they end.

    Raises:
        BadRecord: a feature comes twice.
    """
    requests: list[ChatRequest] = []
    seen: set[str] = set()
    for request in explanation_requests(tasks, settings):
        name = str(request.feature) if isinstance(request, NotExplained) else request.request_id
        if name in seen:
            raise BadRecord(f"feature {name} comes twice; each is explained once.")
        seen.add(name)
        if isinstance(request, NotExplained):
            yield request
        else:
            requests.append(request)
    async with aclosing(client.ask_all(requests)) as outcomes:
        async for outcome in outcomes:
            feature = FeatureId.parse(outcome.request_id)
            if not isinstance(outcome, Answered):
                yield NotExplained(feature, outcome.reason, outcome.message, outcome.raw, outcome.spending)
                continue
            assert isinstance(outcome.reply, ExplanationReply)
            (text,) = read_explanations(outcome.reply, 1)
            explanation = Explanation(
                feature=feature, text=text, explainer=client.model, prompt_version=EXPLANATION_VERSION
            )
            yield LlmExplained(explanation, outcome.spending)


def _check(reply: BaseModel) -> None:
    assert isinstance(reply, ExplanationReply)
    read_explanations(reply, 1)
