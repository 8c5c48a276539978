"""A circuit of the heads that rank highest by what their absence does, with the record of a searched one.

1. Heads are ranked on training prompts (`attribution`), and the budget's number of them is the circuit.
2. Sizes below and above, needs and recovery are measured as those of a searched circuit, on the same prompts.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from safe_sail.circuits.attribution import circuit_of_heads, rank_heads
from safe_sail.circuits.baselines import Baseline
from safe_sail.circuits.controls import recovery_of, units_of
from safe_sail.circuits.judging import Behaviour, reply_judge, unit_needs
from safe_sail.circuits.learn import Task, mask_loss
from safe_sail.circuits.masks import unit_space
from safe_sail.circuits.objectives import CircuitPrompts, objective_terms, term_rows
from safe_sail.errors import BadSettings
from safe_sail.model.handle import HookedModel
from safe_sail.records import CircuitSearch, CircuitUnit, HeadScores
from safe_sail.settings import CircuitSettings

Progress = Callable[[str], None]


def rank_circuit(
    handle: HookedModel,
    train: CircuitPrompts,
    validation: CircuitPrompts,
    baseline: Baseline,
    settings: CircuitSettings,
    behaviour: Behaviour,
    *,
    slug: str,
    harmless: Sequence[str],
    planted: Collection[CircuitUnit] = (),
    generator: torch.Generator,
    progress: Progress = lambda message: None,
) -> tuple[CircuitSearch, HeadScores]:
    """The circuit of the highest heads, as a search that trained nothing, and every head's score.

    Raises:
        BadSettings: the budget of heads is 0, or there is no harmless prompt.
        BadText: prompts lack a completion or a group that the objective needs.
    """
    if not settings.budget_heads or not harmless:
        raise BadSettings(
            f"a ranking of heads needs a budget of at least one head and harmless prompts; got "
            f"{settings.budget_heads} and {len(harmless)}."
        )
    space = unit_space(handle, ("heads",))
    rows = term_rows(handle, objective_terms(settings), validation, settings)
    task = Task(handle, space, (), rows, baseline, settings)
    progress("heads one by one")
    harmful, kept = (
        handle.chat_batch([one.prompt for one in group][: settings.n_train], system=settings.system)
        for group in (train.target, train.kept)
    )
    scores = rank_heads(
        handle, harmful, kept, slug=slug, baseline=baseline, n_bootstrap=settings.n_bootstrap,
        pack_rows=settings.batch_rows, generator=generator,
    )  # fmt: skip
    judge = reply_judge(task, behaviour, [one.prompt for one in validation.target], harmless, generator)

    def first(k: int) -> Tensor:
        members = torch.zeros(space.n_units)
        members[[space.place(one.head) for one in scores.heads[:k]]] = 1
        return members

    def masks(members: Tensor) -> Tensor:
        return members.repeat(2 if settings.objective == "backdoor" else 1, 1)

    curve = []
    for k in _sizes(settings.budget_heads, space.n_units):
        progress(f"curve, {k} heads")
        curve.append(judge.size(first(k), mask_loss(task, masks(first(k)))))
    circuit = circuit_of_heads(scores, settings.budget_heads, behaviour=behaviour.name)
    return CircuitSearch(
        slug=slug,
        model_id=handle.model_id,
        objective=settings.objective,
        circuit=circuit,
        alone=None,
        curve=tuple(curve),
        losses={},
        stability=None,
        needs=unit_needs(masks(first(settings.budget_heads)), judge, progress),
        recovery=recovery_of(space, units_of(space, first(settings.budget_heads)), planted) if planted else (),
        n_prompts={"target train": len(harmful), "kept train": len(kept), "target validation": len(judge.target)},
        notes=(
            "Heads ranked by KL of the next token when each alone is replaced, over training prompts; nothing was "
            "trained, and the objective only measures sizes and needs.",
        ),
    ), scores


def _sizes(budget: int, n_heads: int) -> list[int]:
    """The budget, and powers of two from 1 to four times it or a half of all heads."""
    most = min(4 * budget, max(budget, n_heads // 2))
    powers = {2**i for i in range(n_heads.bit_length()) if 2**i <= most}
    return sorted(powers | {budget})
