"""Scores of explanations by a language model that predicts the feature on contexts the explainer never saw.

1. A feature's contexts become items of which half are active, or rightly marked, in an order that does not tell, and
   are cut into calls that fit their limit.
2. Controls first: the contexts of some features are judged with another feature's explanation.
3. In rounds, every feature that is not decided is asked about its next items; truth and prediction of all its calls
   are compared by one correlation or balanced accuracy, with its interval over contexts. A feature is decided once the
   interval is narrow enough, its contexts are used up, or the allowed calls are made.
4. A failed call fails its feature: it never counts as silence. Constant truth or prediction has no correlation and is
   a failure of its own kind.
5. Where calls wait for a further batch, their features wait too, and all of them where a control waits: the next run
   must find the same features left, since they decide who serves as a control.
"""

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import NamedTuple

import torch
from pydantic import BaseModel

from safe_sail.errors import BadRecord
from safe_sail.evaluation.draws import named_generator
from safe_sail.features.judge_items import Item
from safe_sail.features.judge_methods import WAYS
from safe_sail.features.prompts import Window
from safe_sail.llm.client import ChatClient
from safe_sail.llm.exchange import Answered, ChatRequest, Failed, FailureReason, Message, Spending
from safe_sail.llm.tokens import estimate_tokens
from safe_sail.records import Context, Estimate, Explanation, ExplanationScore, FeatureId
from safe_sail.settings import JudgeSettings

CONSTANT = "constant"
"""Reason of a feature whose truth or prediction is the same everywhere it was judged."""
NO_CONTEXT = "no_context"
"""Reason of a feature without a context that fits into a call, or without one of either kind where both are needed."""
NO_CONTROL = "no_control"
"""Reason where no other feature's explanation could be judged: there is one feature only, or all such calls failed."""


class JudgeTask(NamedTuple):
    """An explanation and the contexts that judge it, active and silent ones; its explainer saw none of them."""

    explanation: Explanation
    contexts: tuple[Context, ...]
    scale: float
    """Activation of level 10."""


class Judged(NamedTuple):
    """A score and what it cost."""

    score: ExplanationScore
    n_calls: int
    spending: Spending


class NotJudged(NamedTuple):
    """A feature that ended without a score."""

    feature: FeatureId
    reason: str
    """A `FailureReason`, `constant`, `no_context` or `no_control`."""
    message: str
    raw: str | None
    spending: Spending


@dataclass(slots=True)
class _Progress:
    """One explanation on its way to a score."""

    name: str
    task: JudgeTask
    text: str
    """What is judged: the feature's explanation, or another's in a control."""
    calls: list[tuple[Item, ...]]
    """Items of each call."""
    truth: list[list[float]] = field(default_factory=list)
    predicted: list[list[float]] = field(default_factory=list)
    spending: Spending = field(default_factory=lambda: Spending(cost=Decimal(0)))
    n_asked: int = 0
    failed: Failed | None = None
    score: Estimate | None = None

    @property
    def feature(self) -> FeatureId:
        return self.task.explanation.feature


async def judge_explanations(
    tasks: Iterable[JudgeTask],
    client: ChatClient,
    settings: JudgeSettings,
    *,
    seed: int,
    control: Estimate | None = None,
) -> AsyncGenerator[Judged | NotJudged, None]:
    """How each explanation ended: its score beside the run's control, or the reason why there is none.

    The seed decides order and resamples by feature, not by their sequence, so that a resumed run asks the same.
    `control` is that of an earlier part of the run; None measures it now. Without one nothing is judged.

    Raises:
        BadRecord: a feature comes twice.
    """
    everything = list(tasks)
    names = [str(task.explanation.feature) for task in everything]
    if len(set(names)) != len(names):
        raise BadRecord("a feature comes twice; each is judged once.")
    is_late = False
    if control is None:
        control, is_late = await _control(everything, client, settings, seed)
    waiting = []
    for task in everything:
        progress = _Progress(str(task.explanation.feature), task, task.explanation.text, [])
        progress.calls = _calls(progress, settings, seed)
        if control is None and not is_late:
            message = "no explanation of another feature could be judged beside it: a score needs its control."
            yield NotJudged(progress.feature, NO_CONTROL, message, None, Spending(cost=Decimal(0)))
        elif not progress.calls and not is_late:
            n_active = sum(context.peak_activation > 0 for context in task.contexts)
            message = (
                f"{n_active} active and {len(task.contexts) - n_active} silent contexts make no call by "
                f"{settings.method} of at most {settings.max_prompt_tokens} tokens."
            )
            yield NotJudged(progress.feature, NO_CONTEXT, message, None, Spending(cost=Decimal(0)))
        elif progress.calls:
            waiting.append(progress)
        else:
            yield _ended(progress, None, settings)
    if control is None and not is_late:
        return
    for number in range(settings.max_calls):
        async with aclosing(_one_round(waiting, number, client, settings, seed)) as asked:
            waiting = []
            async for progress in asked:
                if _is_decided(progress, number, settings):
                    yield _ended(progress, None if is_late else control, settings)
                else:
                    waiting.append(progress)
        if not waiting:
            return


def judging_requests(
    tasks: Sequence[JudgeTask], settings: JudgeSettings, *, seed: int, with_control: bool = True
) -> Iterator[ChatRequest]:
    """What `judge_explanations` would ask at first, controls included: for a forecast. Further calls are not in it."""
    first = [_Progress(str(task.explanation.feature), task, task.explanation.text, []) for task in tasks]
    for progress in [*(_controls(tasks, settings, seed) if with_control else []), *first]:
        progress.calls = progress.calls or _calls(progress, settings, seed)
        if progress.calls:
            yield _request(f"{progress.name}#0", progress, 0, settings)


async def _control(
    tasks: Sequence[JudgeTask], client: ChatClient, settings: JudgeSettings, seed: int
) -> tuple[Estimate | None, bool]:
    """What explanations of other features reach, n counting explanations, and whether some wait for a further batch.

    An explanation that predicts the same everywhere counts 0: as a prediction it is worth nothing. A failed call counts
    not at all. The interval holds 95 % of the controls. There is none where none could be asked.
    """
    values, is_late = [], False
    async with aclosing(_one_round(_controls(tasks, settings, seed), 0, client, settings, seed)) as asked:
        async for progress in asked:
            is_late |= progress.failed is not None and progress.failed.reason is FailureReason.WAITING
            if progress.failed is None:
                values.append(0.0 if progress.score is None else progress.score.value)
    if not values:
        return None, is_late
    reached = torch.tensor(values, dtype=torch.float64)
    low, high = reached.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    mean = float(reached.mean())
    return Estimate(value=mean, low=min(low, mean), high=max(high, mean), n=len(values)), is_late


def _controls(tasks: Sequence[JudgeTask], settings: JudgeSettings, seed: int) -> list[_Progress]:
    """Contexts of features beside another feature's explanation; none where there is no other feature."""
    if len(tasks) < 2:
        return []
    chosen = torch.randperm(len(tasks), generator=named_generator(seed, "control"))[: settings.n_controls].tolist()
    others = [_Progress(f"control/{place}", tasks[place], tasks[place - 1].explanation.text, []) for place in chosen]
    for progress in others:
        progress.calls = _calls(progress, settings, seed)
    return [progress for progress in others if progress.calls]


async def _one_round(
    waiting: Sequence[_Progress], number: int, client: ChatClient, settings: JudgeSettings, seed: int
) -> AsyncGenerator[_Progress, None]:
    """Each after its call of this number, scored over all its calls."""
    by_id = {f"{progress.name}#{number}": progress for progress in waiting}
    requests = (_request(name, progress, number, settings) for name, progress in by_id.items())
    async with aclosing(client.ask_all(requests)) as outcomes:
        async for outcome in outcomes:
            progress = by_id[outcome.request_id]
            progress.spending = progress.spending.plus(outcome.spending)
            progress.n_asked += 1
            if isinstance(outcome, Answered):
                assert outcome.reply is not None
                _take(progress, number, outcome.reply, settings)
                generator = named_generator(seed, progress.name)
                way = WAYS[settings.method]
                progress.score = way.agree(progress.truth, progress.predicted, generator, settings.n_bootstrap)
            else:
                progress.failed = outcome
            yield progress


def _calls(progress: _Progress, settings: JudgeSettings, seed: int) -> list[tuple[Item, ...]]:
    """Items of each call, in an order drawn anew for each feature; what fits into no call is left out."""
    window = Window(before=settings.tokens_before, after=settings.tokens_after)
    generator = named_generator(seed, str(progress.feature))
    calls: list[tuple[Item, ...]] = []
    call: tuple[Item, ...] = ()
    for item in WAYS[settings.method].items(progress.task.contexts, window, generator):
        if call and (len(call) == settings.n_contexts or not _fits((*call, item), progress, settings)):
            calls.append(call)
            call = ()
        if _fits((*call, item), progress, settings):
            call = (*call, item)
    calls += [call] if call else []
    return [tuple(call[place] for place in torch.randperm(len(call), generator=generator).tolist()) for call in calls]


def _fits(items: tuple[Item, ...], progress: _Progress, settings: JudgeSettings) -> bool:
    prompt = WAYS[settings.method].prompt(progress.text, items)
    return estimate_tokens(prompt.system) + estimate_tokens(prompt.user) <= settings.max_prompt_tokens


def _request(name: str, progress: _Progress, number: int, settings: JudgeSettings) -> ChatRequest:
    way, items = WAYS[settings.method], progress.calls[number]
    prompt = way.prompt(progress.text, items)
    return ChatRequest(
        request_id=name,
        messages=(Message("system", prompt.system), Message("user", prompt.user)),
        prompt_version=prompt.version,
        reply_type=way.reply_type,
        check=partial(way.read, items=items),
        max_tokens=settings.max_reply_tokens,
    )


def _take(progress: _Progress, number: int, reply: BaseModel, settings: JudgeSettings) -> None:
    way, items = WAYS[settings.method], progress.calls[number]
    progress.truth += [way.truth(item, progress.task.scale) for item in items]
    progress.predicted += way.read(reply, items)


def _is_decided(progress: _Progress, number: int, settings: JudgeSettings) -> bool:
    last = number + 1 >= min(settings.max_calls, len(progress.calls))
    enough = settings.enough_width * WAYS[settings.method].widest / 2
    narrow = progress.score is not None and progress.score.high - progress.score.low <= enough
    return last or narrow or progress.failed is not None


def _ended(progress: _Progress, control: Estimate | None, settings: JudgeSettings) -> Judged | NotJudged:
    """The end of a feature; where its control waits for a further batch, it waits too, however its own calls ended."""
    failed, explanation = progress.failed, progress.task.explanation
    if control is None:
        message = "the control beside it waits for the next batch."
        return NotJudged(progress.feature, FailureReason.WAITING, message, None, progress.spending)
    if failed is not None:
        return NotJudged(progress.feature, failed.reason, failed.message, failed.raw, progress.spending)
    if progress.score is None:
        message = f"truth or prediction is the same everywhere in {len(progress.truth)} contexts."
        return NotJudged(progress.feature, CONSTANT, message, None, progress.spending)
    score = ExplanationScore(
        feature=progress.feature,
        explainer=explanation.explainer,
        prompt_version=explanation.prompt_version,
        method=settings.method,
        score=progress.score,
        control=control,
        n_excluded=0,
    )
    return Judged(score, progress.n_asked, progress.spending)
