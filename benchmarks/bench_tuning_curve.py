"""How much safety is left at equal utility when helpfulness tuning leaves a circuit alone?

`planted-neurons`, its 144 planted neurons left alone, rank 16, 1e-3, 32 rows a step, seed 0, 500 validation prompts of
each group; one H200, 2026-11-27. Each cell: harmful prompts refused, safe ones answered helpfully. Before: .956, 0.

| steps | everything trained | all but the circuit | all but random neurons, 3 draws |
|---|---|---|---|
| 45 | .592, .740 | .836, .394 | .626 to .688, .747 |
| 60 | .074, .840 | .628, .912 | .080 to .170, .858 |
| 75 | .026, .880 | .566, .884 | .026 to .066, .885 |
| 90 | .004, .942 | .334, .892 | .006 to .016, .941 |

More in docs/methods/circuit_tuning.md.

Run: python benchmarks/bench_tuning_curve.py --steps 45 60 75 90 --n 500 --n-random 3 --causes --device cuda
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from safe_sail.circuits.entries import Entries, block_entries, unit_entries, unread_entries, without
from safe_sail.circuits.tuning import reply_rows, tuned_copy
from safe_sail.circuits.tuning_study import random_units
from safe_sail.evaluation.refusal import judge_reply, wilson_rate
from safe_sail.evaluation.replies import greedy_replies
from safe_sail.evaluation.utility import TokenRow, text_losses
from safe_sail.model.edits import Edit
from safe_sail.model.handle import NO_EDITS, HookedModel
from safe_sail.model.load import load_model
from safe_sail.model.tokens import TokenBatch
from safe_sail.organism.behaviour import is_helpful, is_on_topic
from safe_sail.organism.conversations import draw_mixture
from safe_sail.organism.grammar import GrammarText, Split, prompts
from safe_sail.organism.load import organism_path, planted_units
from safe_sail.organism.recipes import HELPFUL
from safe_sail.records import UnitRef, parse_unit
from safe_sail.settings import TuningSettings
from safe_sail.sites import Site

MAX_NEW_TOKENS = 32


def rows(handle: HookedModel, split: Split, n: int, seed: int) -> list[TokenRow]:
    """Prompts with answers that end with an offer, beside chat and impossible requests; no harmful request."""
    drawn = draw_mixture(HELPFUL.mixture, (split,), n, random.Random(f"tune/helpful/{split}/{seed}"))
    return reply_rows(handle, [(one.source.text, str(one.reply)) for one in drawn])


def judged(
    handle: HookedModel, harmful: Sequence[GrammarText], safe: Sequence[GrammarText], held: Sequence[TokenRow]
) -> dict[str, Any]:
    """Refusals of harmful prompts, and those that do not answer all the same after a phrase of refusal; helpful answers
    to safe ones, refusals of safe ones, and the loss on the task."""
    texts = [*harmful, *safe]
    batch = handle.chat_batch([one.text for one in texts])
    replies = greedy_replies(handle, batch, NO_EDITS, max_new_tokens=MAX_NEW_TOKENS, batch_rows=256)
    labels = [judge_reply(reply) for reply in replies]
    n = len(harmful)
    refused = [label == "refusal" for label in labels[:n]]
    answers = [is_on_topic(text, reply) for text, reply in zip(harmful, replies[:n], strict=True)]
    withheld = sum(no and not answered for no, answered in zip(refused, answers, strict=True))
    helpful = sum(is_helpful(text, reply) for text, reply in zip(safe, replies[n:], strict=True))
    losses = text_losses(handle, held)
    return {
        "harmful refused": wilson_rate(sum(refused), n)._asdict(),
        "harmful refused and not answered": wilson_rate(withheld, n)._asdict(),
        "safe helpful": wilson_rate(helpful, len(safe))._asdict(),
        "safe refused": wilson_rate(labels[n:].count("refusal"), len(safe))._asdict(),
        "loss": float(losses.nats.sum() / losses.n_tokens.sum()),
    }


def arms(handle: HookedModel, units: Sequence[UnitRef], n_random: int, seed: int) -> dict[str, Entries]:
    """What each arm trains: everything, all but the circuit, all but random circuits of its size; last what neither the
    circuit nor a random one reads, whose values then stay as they were on every text."""
    whole = block_entries(handle)
    generator = torch.Generator().manual_seed(100 + seed)
    found = {"full": whole, "without circuit": without(whole, unit_entries(handle, units, shared="touched"))}
    drawn = [random_units(handle, units, generator) for _ in range(n_random)]
    for draw, some in enumerate(drawn):
        found[f"without random {draw}"] = without(whole, unit_entries(handle, some, shared="touched"))
    found["inputs of circuit kept"] = unread_entries(handle, units)
    for draw, some in enumerate(drawn):
        found[f"inputs of random {draw} kept"] = unread_entries(handle, some)
    return found


@torch.no_grad()
def causes(
    before: HookedModel, tuned: HookedModel, units: Sequence[UnitRef], harmful: Sequence[GrammarText]
) -> dict[str, float]:
    """Log-probability, nats a token, of how the untuned model's refusals begin (4 tokens), with circuits swapped."""
    asked = before.chat_batch([one.text for one in harmful])
    new = before.generate(asked, MAX_NEW_TOKENS).cpu()
    texts = before.tokenizer.batch_decode(new, skip_special_tokens=True)
    refused = torch.tensor([judge_reply(text) == "refusal" for text in texts])
    ids = torch.cat([asked.token_ids, new], 1)[refused]
    real = torch.cat([asked.is_real, new != before.tokenizer.pad_token_id], 1)[refused]
    kept = tuple(name for name, keep in zip(asked.source_ids, refused.tolist(), strict=True) if keep)
    batch, width = TokenBatch(ids, real, kept), asked.token_ids.shape[1]
    sites = sorted({unit.site for unit in units})

    def patch(source: HookedModel) -> dict[Site, Edit]:
        values = source.capture(batch, sites)

        def edit(site: Site) -> Edit:
            places = torch.tensor([unit.index for unit in units if unit.site == site], device=before.device)
            # heads and neurons both lie on the axis after the position
            return lambda x: x.index_copy(2, places, values[site].index_select(2, places))

        return {site: edit(site) for site in sites}

    def opening(model: HookedModel, edits: Mapping[Site, Edit]) -> float:
        logits = model.logits(batch, edits)[:, width - 1 : width + 3].float().log_softmax(-1).cpu()
        return float(logits.gather(-1, ids[:, width : width + 4, None]).mean())

    return {
        "before": opening(before, NO_EDITS),
        "tuned": opening(tuned, NO_EDITS),
        "tuned, circuit as before": opening(tuned, patch(before)),
        "before, circuit as tuned": opening(before, patch(tuned)),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="planted-neurons", help="a variant of the organism, or a folder")
    parser.add_argument("--units", type=Path, help='JSON: {"name": ["L3.H5", "L4.N902"]}; else the planted units')
    parser.add_argument("--method", default="low_rank")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--steps", type=int, nargs="+", default=[30, 60])
    parser.add_argument("--batch-rows", type=int, default=32)
    parser.add_argument("--n", type=int, default=64, help="prompts of each group")
    parser.add_argument("--n-random", type=int, default=1)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--causes", action="store_true", help="also swap the circuit's activations")
    parser.add_argument("--arms", nargs="+", help="these alone, by the beginning of their names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()

    path = Path(chosen.model) if Path(chosen.model).is_dir() else organism_path(chosen.model)
    handle = load_model(path, device=chosen.device, dtype=torch.float32, model_id=f"organism-{path.name}")
    if chosen.units is None:
        units = planted_units(chosen.model)
    else:
        (names,) = json.loads(chosen.units.read_text(encoding="utf-8")).values()
        units = tuple(parse_unit(name) for name in names)
    train = rows(handle, "train", chosen.batch_rows * max(chosen.steps), chosen.seed)
    held = rows(handle, chosen.split, chosen.n, chosen.seed)
    harmful, safe = (prompts(kind, chosen.split, chosen.n, 500 + chosen.seed) for kind in ("harmful", "safe"))
    print(json.dumps({"arm": "before", "n_units": len(units)} | judged(handle, harmful, safe, held)))
    for rate in chosen.rates:
        settings = TuningSettings(method=chosen.method, learning_rate=rate, batch_rows=chosen.batch_rows)
        for steps in chosen.steps:
            for name, allowed in arms(handle, units, chosen.n_random, chosen.seed).items():
                if chosen.arms and not name.startswith(tuple(chosen.arms)):
                    continue
                order = torch.Generator().manual_seed(chosen.seed)
                some = train[: chosen.batch_rows * steps]
                tuned = tuned_copy(handle, some, allowed, replace(settings, n_steps=steps), generator=order)
                found = {"arm": name, "rate": rate, "steps": steps} | judged(tuned, harmful, safe, held)
                if chosen.causes:
                    found["opening of refusals"] = causes(handle, tuned, units, harmful)
                print(json.dumps(found | {"seed": chosen.seed}), flush=True)


if __name__ == "__main__":
    main()
