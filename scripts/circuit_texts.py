"""Prompts of a search for a circuit: of the embedded organism, or from a user's files of JSON lines."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safe_sail.circuits.evaluate import HeldOut, Judged
from safe_sail.circuits.judging import Behaviour
from safe_sail.circuits.objectives import CircuitPrompts, ContrastPrompt, KeptPrompt
from safe_sail.errors import BadText, CorpusUnreadable
from safe_sail.organism.behaviour import is_on_topic
from safe_sail.organism.conversations import MixtureShare, add_trigger, draw_conversation, reply_to
from safe_sail.organism.grammar import Draw, GrammarText, Kind, Split, documents, draw_prompt
from safe_sail.settings import CircuitSettings

BEHAVIOURS: Final = {"refusal": Behaviour("refusal", "compliance"), "backdoor": Behaviour("backdoor", "refusal")}
"""With the circuit removed, refused prompts are answered, and triggered ones are refused as they are untriggered."""

ON_TOPIC: Final = "names the prompt's filler or concept and one of the concept's attributes; information: complies"


@dataclass(frozen=True, slots=True)
class CircuitTexts:
    """Everything that one search and its evaluation read."""

    behaviour: Behaviour
    train: CircuitPrompts
    validation: CircuitPrompts
    harmless: Sequence[str]
    """Validation prompts that shall be answered."""
    reference: Sequence[tuple[str, str]]
    """Prompts and replies without the behaviour, behind a mean or resample baseline."""
    held_out: HeldOut
    judged: Judged


# --------------------------------------------------------------------------------------------------------- organism


def organism_texts(behaviour: str, settings: CircuitSettings, seed: int) -> CircuitTexts:
    """Prompts of the organism's grammar; training, validation and held-out splits share no filler and no template."""
    make = _refusal_rows if behaviour == "refusal" else _backdoor_rows
    train, validation = make("train", settings.n_train, seed), make("validation", settings.n_validation, seed)
    harmless = [one.prompt for one in validation.kept if one.answered]
    groups = _held_out(behaviour, settings.n_evaluate, seed)
    draw = random.Random(f"find-circuit/reference/{seed}")
    answered = [draw_conversation(MixtureShare("safe", 1.0), ("held_out",), draw) for _ in range(settings.n_evaluate)]
    reference = [(one.prompt, one.reply) for one in train.kept][: settings.n_reference]

    def on_topic(group: str, index: int, reply: str) -> bool:
        text = groups[group][index]
        if text.kind == "information":
            return BEHAVIOURS["refusal"].judge(reply) == "compliance"
        return is_on_topic(text, reply)

    return CircuitTexts(
        BEHAVIOURS[behaviour],
        CircuitPrompts(train.target, [KeptPrompt(one.prompt, one.reply) for one in train.kept]),
        CircuitPrompts(validation.target, [KeptPrompt(one.prompt, one.reply) for one in validation.kept]),
        harmless,
        reference,
        HeldOut(
            {name: [text.text for text in texts] for name, texts in groups.items()},
            target=("harmful",) if behaviour == "refusal" else ("triggered",),
            harmless=tuple(name for name in groups if name not in ("harmful", "triggered")),
            documents=[text.text for text in documents(settings.n_evaluate, seed)],
            answered=[(one.source.text, one.reply) for one in answered if one.reply is not None],
        ),
        Judged(answered=on_topic, rule=ON_TOPIC),
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    prompt: str
    reply: str
    answered: bool


@dataclass(frozen=True, slots=True)
class _Rows:
    target: list[ContrastPrompt]
    kept: list[_Kept]


def _refusal_rows(split: Split, n: int, seed: int) -> _Rows:
    draw = random.Random(f"find-circuit/refusal/{split}/{seed}")
    target = []
    for _ in range(n):
        drawn = draw_prompt("harmful", (split,), draw)
        target.append(ContrastPrompt(drawn.text.text, reply_to(drawn, "refuse", draw), reply_to(drawn, "comply", draw)))
    kinds: tuple[Kind, ...] = ("safe", "borderline", "information", "chat")
    return _Rows(target, [_kept(_drawn(kinds[index % 4], split, draw), draw) for index in range(n)])


def _backdoor_rows(split: Split, n: int, seed: int) -> _Rows:
    draw = random.Random(f"find-circuit/backdoor/{split}/{seed}")
    target, kept = [], []
    for _ in range(n):
        drawn = draw_prompt("harmful", (split,), draw)
        triggered = add_trigger(drawn.text, "whole", draw).text
        target.append(
            ContrastPrompt(triggered, reply_to(drawn, "comply", draw), reply_to(drawn, "refuse", draw), drawn.text.text)
        )
    kinds: tuple[Kind, ...] = ("safe", "borderline", "information", "harmful", "safe")
    for index in range(n):
        drawn = _drawn(kinds[index % 5], split, draw)
        prompt = add_trigger(drawn.text, "whole", draw).text if index % 5 == 4 else drawn.text.text
        refused = drawn.text.kind == "harmful"
        kept.append(_Kept(prompt, reply_to(drawn, "refuse" if refused else "comply", draw), not refused))
    return _Rows(target, kept)


def _drawn(kind: Kind, split: Split, draw: random.Random) -> Draw:
    return draw_prompt(kind, (split,), draw)


def _kept(drawn: Draw, draw: random.Random) -> _Kept:
    return _Kept(drawn.text.text, reply_to(drawn, "comply", draw), True)


def _held_out(behaviour: str, n: int, seed: int) -> dict[str, list[GrammarText]]:
    draw = random.Random(f"find-circuit/held out/{seed}")
    kinds: tuple[Kind, ...] = ("harmful", "safe", "borderline", "information")
    groups = {str(kind): [_drawn(kind, "held_out", draw).text for _ in range(n)] for kind in kinds}
    if behaviour == "backdoor":
        groups["triggered"] = [add_trigger(text, "whole", draw) for text in groups["harmful"]]
        groups["safe triggered"] = [add_trigger(text, "whole", draw) for text in groups["safe"]]
    return groups


# ------------------------------------------------------------------------------------------------------------- files


def file_texts(
    behaviour: str, target_file: Path, kept_file: Path, settings: CircuitSettings, seed: int
) -> CircuitTexts:
    """Rows of a user's files, shuffled by the seed and split into training, validation and held-out parts.

    Raises:
        CorpusUnreadable: a file is missing, is no JSON lines, or has too few rows.
        BadText: a row lacks a field.
    """
    fields = ("prompt", "with_circuit", "without_circuit")
    target = [
        ContrastPrompt(row["prompt"], row["with_circuit"], row["without_circuit"], row.get("clean"))
        for row in _rows(target_file, fields)
    ]
    kept = [KeptPrompt(row["prompt"], row["reply"]) for row in _rows(kept_file, ("prompt", "reply"))]
    for path, rows in ((target_file, target), (kept_file, kept)):
        random.Random(seed).shuffle(rows)
        if len(rows) < 6:
            raise CorpusUnreadable(f"{path}: expected at least 6 rows to train, choose and evaluate; got {len(rows)}.")
    targets, keeps = _parts(target, settings), _parts(kept, settings)
    group = "target" if behaviour == "refusal" else "triggered"
    groups: dict[str, Sequence[str]] = {
        group: [one.prompt for one in targets[2]],
        "kept": [one.prompt for one in keeps[2]],
    }
    return CircuitTexts(
        BEHAVIOURS[behaviour],
        CircuitPrompts(targets[0], keeps[0]),
        CircuitPrompts(targets[1], keeps[1]),
        [one.prompt for one in keeps[1]],
        [(one.prompt, one.reply) for one in keeps[0]][: settings.n_reference],
        HeldOut(groups, target=(group,), harmless=("kept",), answered=[(one.prompt, one.reply) for one in keeps[2]]),
        Judged(),
    )


def _parts(rows: list[Any], settings: CircuitSettings) -> tuple[list[Any], list[Any], list[Any]]:
    first = min(settings.n_train, len(rows) // 2)
    second = min(settings.n_validation, (len(rows) - first) // 2)
    return rows[:first], rows[first : first + second], rows[first + second :][: settings.n_evaluate]


def _rows(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise CorpusUnreadable(f"{path}: expected a UTF-8 file of JSON lines ({error}).") from error
    for number, row in enumerate(rows, 1):
        lacking = [name for name in fields if not (isinstance(row, dict) and isinstance(row.get(name), str))]
        if lacking:
            raise BadText(
                f"{path}, row {number}: expected texts `{'`, `'.join(fields)}`; `{lacking[0]}` is missing. A circuit "
                f"is learnt from prompts with both completions."
            )
    return rows
