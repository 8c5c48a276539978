"""Scores of replies: how refusing, how unsafe, or how good a reply is, by anything that reads a prompt and its reply.

A scorer has a name that records keep and a function from prompts with their replies to one number each; None is a reply
that it could not score, which is counted and never replaced.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.errors import BadSettings
from safe_sail.evaluation.llm_judge import Said
from safe_sail.evaluation.refusal import Label, judge_reply


class Scorer(NamedTuple):
    """What scores replies."""

    name: str
    score: Callable[[Sequence[Said]], Sequence[float | None]]


REFUSAL: Final = Scorer("refusal phrases", lambda said: [float(judge_reply(one.reply) == "refusal") for one in said])
"""1 for a refusal by phrases, 0 for compliance and for broken text."""


def reward_scorer(name: str, reward: Callable[[str, str], float]) -> Scorer:
    """A function of prompt and reply, such as a reward or cost model, as a scorer."""
    return Scorer(name, lambda said: [float(reward(one.prompt, one.reply)) for one in said])


def label_scorer(name: str, label: Callable[[Sequence[Said]], Sequence[Label | None]]) -> Scorer:
    """1 where another judge, such as a language model, calls the reply a refusal, else 0; no label is no score."""
    return Scorer(name, lambda said: [None if one is None else float(one == "refusal") for one in label(said)])


def score_all(
    scorer: Scorer, prompts: Sequence[str], replies: Sequence[Sequence[str]]
) -> Float[Tensor, "conditions prompts"]:
    """Scores of the replies to these prompts under every condition, in one call of the scorer; nan where it gave none.

    Raises:
        BadSettings: the scorer gave another number of scores than it was given replies.
    """
    said = [Said(prompt, reply) for each in replies for prompt, reply in zip(prompts, each, strict=True)]
    found = scorer.score(said)
    if len(found) != len(said):
        raise BadSettings(
            f"scorer `{scorer.name}` gave {len(found)} scores for {len(said)} replies; expected one each."
        )
    values = [float("nan") if one is None else one for one in found]
    return torch.tensor(values, dtype=torch.float64).reshape(len(replies), len(prompts))
