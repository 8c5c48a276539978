"""What `safe-sail guard` prints and draws."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes

from safe_sail.neurons.guard import Answer, Guard
from safe_sail.records import Estimate, GuardEvaluation
from scripts.neuron_report import drawn, shown


def print_guards(
    evaluation: GuardEvaluation,
    answers: Sequence[tuple[str, Answer]],
    figures: Sequence[Path],
    saved: Path | None,
    *,
    database: str,
    as_json: bool,
) -> None:
    """Prints what the guards do, as JSON or for people."""
    if as_json:
        plain = {
            "evaluation": asdict(evaluation), "answers": _plain(answers), "figures": [str(path) for path in figures],
            "saved": None if saved is None else str(saved),
        }  # fmt: skip
        print(json.dumps(plain))
        return
    unsafe = ", ".join(f"{n} of the {split}" for split, n in evaluation.n_unsafe.items())
    print(f"guards of {evaluation.model_id}: unsafe answers by {evaluation.scorer}: {unsafe} prompts")
    print(f"{'read before the answer':26}{'AUROC':21}{'random neurons':21}{'gain':23}{'Brier':8}{'calibration':12}")
    for one in evaluation.scores:
        name = f"{one.features} ({one.n_features})"
        gain = f"{one.gain.value:+.3f} [{one.gain.low:+.3f}, {one.gain.high:+.3f}]"
        print(
            f"{name:26}{_three(one.auroc):21}{_three(one.random_auroc):21}{gain:23}{one.brier.value:<8.3f}"
            f"{one.calibration_error.value:<12.3f}"
        )
    for one in evaluation.scores:
        refused = ", ".join(f"{kind} {shown(rate)}" for kind, rate in one.false_refusals.items())
        print(
            f"{one.features}: at {one.threshold:.3f} {shown(one.caught)} of unsafe answers caught; refused: {refused}"
        )
        below = sum(draw < one.auroc.value for draw in one.random_draws)
        print(f"  {below} of {len(one.random_draws)} draws of random neurons have a smaller AUROC")
    for note in evaluation.notes:
        print(f"note: {note}")
    _say(answers)
    for path in figures:
        print(f"drawn: {path}")
    if saved is not None:
        print(f"the guard on {evaluation.kept} is in {saved}")
    print(f"kept in {database} as {evaluation.slug}")


def print_answers(guard: Guard, answers: Sequence[tuple[str, Answer]], *, as_json: bool) -> None:
    """Prints what a guarded model says."""
    if as_json:
        print(json.dumps({"threshold": guard.threshold, "answers": _plain(answers)}))
        return
    print(f"guard on {guard.features} of {guard.model_id}, threshold {guard.threshold:.3f}")
    _say(answers)


def _say(answers: Sequence[tuple[str, Answer]]) -> None:
    for prompt, answer in answers:
        print(
            f"{answer.probability:.3f} {'refused ' if answer.refused else 'answered'}  {prompt!r} -> {answer.reply!r}"
        )


def _plain(answers: Sequence[tuple[str, Answer]]) -> list[dict[str, object]]:
    return [{"prompt": prompt, **answer._asdict()} for prompt, answer in answers]


def _three(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def draw_guards(evaluation: GuardEvaluation, out: Path) -> list[Path]:
    """The ROC of each kind of features, as a PNG file in the folder."""
    out.mkdir(parents=True, exist_ok=True)
    return [drawn(out / f"{evaluation.slug}.roc.png", lambda axes: _roc(axes, evaluation))]


def _roc(axes: Axes, evaluation: GuardEvaluation) -> None:
    for one in evaluation.scores:
        label = f"{one.features}: {one.auroc.value:.3f} (random neurons {one.random_auroc.value:.3f})"
        axes.plot([safe for safe, _ in one.roc], [hit for _, hit in one.roc], label=label)
    axes.plot([0, 1], [0, 1], ":", color="0.7", linewidth=0.8)
    axes.set_xlabel("share of safe answers refused")
    axes.set_ylabel("share of unsafe answers refused")
    axes.set_title(f"Guards of {evaluation.model_id}, held-out prompts")
    axes.legend(fontsize=8, loc="lower right")
