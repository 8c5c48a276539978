"""What masks are trained for: terms over rows of prompt and reply, each under one view of the circuit.

1. Rows are token ids: a prompt in the model's chat template, and a completion encoded without special tokens. The
   completion's place is the end of the prompt's ids, so no token added by a tokenizer can shift the labels.
2. A batch is aligned where replies begin: prompts are padded on the left, replies on the right, so that the head sees
   the columns of replies alone.
3. A term is a cross-entropy, a bounded or the published negative cross-entropy, or KL to the full model, as a mean over
   rows of the mean over the row's tokens, in nats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safe_sail.circuits.masks import View
from safe_sail.errors import BadSettings, BadText
from safe_sail.model.chat import chat_rows
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch, pad_id_of
from safe_sail.settings import CircuitSettings

IGNORED = -100

TermKind = Literal["cross_entropy", "hinge", "negative_cross_entropy", "kl"]
RowGroup = Literal["target", "clean", "kept"]


class ContrastPrompt(NamedTuple):
    """A prompt on which the circuit decides: what the model says with it, and what it shall say without it."""

    prompt: str
    with_circuit: str
    """alignment: the refusal; backdoor: the triggered output."""
    without_circuit: str
    """alignment: the answer; backdoor: the normal output."""
    clean: str | None = None
    """backdoor: the same prompt without the trigger, to which the model replies as it shall without the circuit."""


class KeptPrompt(NamedTuple):
    """A prompt on which nothing shall change, with a reply along which that is measured."""

    prompt: str
    reply: str


@dataclass(frozen=True, slots=True)
class CircuitPrompts:
    """Prompts of one split."""

    target: Sequence[ContrastPrompt]
    kept: Sequence[KeptPrompt] = ()


class Term(NamedTuple):
    """One part of an objective."""

    name: str
    group: RowGroup
    reply: Literal["with_circuit", "without_circuit", "own"]
    view: View
    kind: TermKind
    weight: float


class ReplyRow(NamedTuple):
    """One row as token ids."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TermRows:
    """A term with its rows, and what the full model says along them where the term compares with it."""

    term: Term
    rows: tuple[ReplyRow, ...]
    reference: tuple[Float[Tensor, "reply d_vocab"], ...] | None


def objective_terms(settings: CircuitSettings) -> tuple[Term, ...]:
    """The terms of a named objective; terms of weight 0 are left out.

    Source: alignment and backdoor are the losses of Yu et al. 2026 (arXiv:2603.23268) as published in code; kl is the
    paper's, sum over tokens replaced by their mean. removal is ours: the target's wanted reply without the circuit, and
    KL to the full model on prompts where nothing shall change.
    """
    away: TermKind = "negative_cross_entropy" if settings.unbounded else "hinge"
    removed, alone, keep = settings.removed_weight, settings.alone_weight, settings.kept_weight
    kept = Term("kept", "kept", "own", "removed", "kl", keep)
    wanted = Term("wanted", "target", "without_circuit", "removed", "cross_entropy", removed)
    avoided = Term("avoided", "target", "with_circuit", "removed", away, settings.away_weight)
    carried = Term("carried", "target", "with_circuit", "alone", "cross_entropy", alone)
    terms = {
        "removal": (wanted, avoided, kept),
        "alignment": (wanted, carried, kept),
        "backdoor": (
            Term("clean", "clean", "without_circuit", "removed", "cross_entropy", removed),
            wanted,
            carried,
            Term("away", "clean", "with_circuit", "alone", away, alone),
            kept,
        ),
        "kl": (
            Term("faithful", "target", "with_circuit", "alone", "kl", alone),
            Term("faithful kept", "kept", "own", "alone", "kl", keep),
        ),
    }[settings.objective]
    found = tuple(term for term in terms if term.weight > 0)
    if not found:
        raise BadSettings(f"objective {settings.objective}: every weight is 0, so there is nothing to learn.")
    return found


def term_rows(
    handle: HookedModel, terms: Sequence[Term], prompts: CircuitPrompts, settings: CircuitSettings
) -> list[TermRows]:
    """Each term's rows, as ids, cut after the first reply tokens that count.

    Raises:
        BadText: a prompt lacks a completion or a clean form that a term needs, or there is no prompt for it.
    """
    found = []
    for term in terms:
        pairs = _pairs(term, prompts)
        rows = encoded_rows(handle, pairs, settings.first_tokens, settings.system)
        reference = full_log_probs(handle, rows, settings.batch_rows) if term.kind == "kl" else None
        found.append(TermRows(term, rows, reference))
    return found


def _pairs(term: Term, prompts: CircuitPrompts) -> list[tuple[str, str]]:
    if term.group == "kept":
        pairs = [(one.prompt, one.reply) for one in prompts.kept]
    else:
        for index, one in enumerate(prompts.target):
            if not one.with_circuit.strip() or not one.without_circuit.strip():
                raise BadText(
                    f"prompt {index} ({one.prompt[:40]!r}): expected two completions, one with the circuit and one "
                    f"without it; one is empty. A circuit is learnt from the contrast, so give both."
                )
        lacking = [index for index, one in enumerate(prompts.target) if term.group == "clean" and one.clean is None]
        if lacking:
            raise BadText(f"prompt {lacking[0]}: the backdoor objective needs the prompt without its trigger, too.")
        pairs = [
            ((one.clean if term.group == "clean" else one.prompt) or "", getattr(one, term.reply))
            for one in prompts.target
        ]
    if not pairs:
        raise BadText(f"the objective's term `{term.name}` needs {term.group} prompts, got none.")
    return pairs


def encoded_rows(
    handle: HookedModel, pairs: Sequence[tuple[str, str]], first_tokens: int | None, system: str | None
) -> tuple[ReplyRow, ...]:
    """Prompts in the chat template and replies with the end token, of which the first tokens are kept.

    Raises:
        BadText: a reply has no token.
    """
    end = handle.tokenizer.eos_token_id
    heads = chat_rows(handle.tokenizer, [prompt for prompt, _ in pairs], system=system)
    rows = []
    for index, (head, (_, reply)) in enumerate(zip(heads, pairs, strict=True)):
        ids = handle.tokenizer(reply, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            raise BadText(f"row {index}: the completion {reply!r} has no token.")
        whole = (*ids, *([] if end is None else [end]))
        rows.append(ReplyRow(tuple(head), whole[:first_tokens]))
    return tuple(rows)


# ------------------------------------------------------------------------------------------------------------ batches


class AlignedBatch(NamedTuple):
    """Rows whose replies begin in one column; inputs lack each reply's last token."""

    batch: TokenBatch
    targets: Int[Tensor, "batch reply"]
    """Reply tokens, -100 after a row's last one."""


def aligned_batch(rows: Sequence[ReplyRow], pad_id: int) -> AlignedBatch:
    """The rows with prompts padded on the left and replies on the right."""
    before = max(len(row.prompt) for row in rows)
    width = max(len(row.reply) for row in rows)
    ids = torch.full((len(rows), before + width - 1), pad_id)
    mask = torch.zeros_like(ids)
    targets = torch.full((len(rows), width), IGNORED)
    for index, row in enumerate(rows):
        given = (*row.prompt, *row.reply[:-1])
        columns = slice(before - len(row.prompt), before + len(row.reply) - 1)
        ids[index, columns] = torch.tensor(given)
        mask[index, columns] = 1
        targets[index, : len(row.reply)] = torch.tensor(row.reply)
    return AlignedBatch(TokenBatch(ids, mask, tuple(map(str, range(len(rows))))), targets)


def reply_logits(handle: HookedModel, aligned: AlignedBatch) -> Float[Tensor, "batch reply d_vocab"]:
    """Logits of each reply token, under whatever edits are in force (`HookedModel.editing`)."""
    batch = aligned.batch.to(handle.device)
    found: Tensor = handle.model(
        input_ids=batch.token_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=aligned.targets.shape[1],
    ).logits
    return found.float()


@torch.no_grad()
def full_log_probs(handle: HookedModel, rows: Sequence[ReplyRow], batch_rows: int) -> tuple[Tensor, ...]:
    """What the unmasked model says along the replies, row by row."""
    found = []
    for first in range(0, len(rows), batch_rows):
        aligned = aligned_batch(rows[first : first + batch_rows], pad_id_of(handle.tokenizer))
        log_p = reply_logits(handle, aligned).log_softmax(-1)
        lengths = (aligned.targets != IGNORED).sum(1).tolist()
        found += [row[:length].clone() for row, length in zip(log_p, lengths, strict=True)]
    return tuple(found)


# ------------------------------------------------------------------------------------------------------------- losses


def row_losses(
    logits: Float[Tensor, "batch reply d_vocab"],
    targets: Int[Tensor, "batch reply"],
    kind: TermKind,
    *,
    margin: float,
    reference: Sequence[Tensor] | None = None,
) -> Float[Tensor, " batch"]:
    """Loss of each row in nats per reply token.

    hinge is max(0, margin - CE): pushing a reply away stops where its tokens have lost `margin` nats each, where the
    published negative cross-entropy has no floor.
    """
    real = targets != IGNORED
    log_p = logits.log_softmax(-1)
    n = real.sum(1).clamp(min=1)
    if kind == "kl":
        assert reference is not None
        # rows of other terms may be longer than every row here
        full = log_p.new_zeros(log_p.shape)
        for row, each in zip(full, reference, strict=True):
            row[: len(each)] = each
        per_token = (full.exp() * (full - log_p)).sum(-1)
        return torch.where(real, per_token, 0).sum(1) / n
    nats = -log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    cross_entropy = torch.where(real, nats, 0).sum(1) / n
    if kind == "cross_entropy":
        return cross_entropy
    return -cross_entropy if kind == "negative_cross_entropy" else (margin - cross_entropy).clamp(min=0)


def view_losses(
    handle: HookedModel,
    parts: Sequence[tuple[TermRows, Sequence[int]]],
    *,
    margin: float,
) -> list[Tensor]:
    """Mean loss of each part, a term and which of its rows, in one pass under the edits in force."""
    chosen = [rows.rows[index] for rows, indices in parts for index in indices]
    aligned = aligned_batch(chosen, pad_id_of(handle.tokenizer))
    return split_losses(reply_logits(handle, aligned), aligned, parts, margin=margin)


def split_losses(
    logits: Tensor, aligned: AlignedBatch, parts: Sequence[tuple[TermRows, Sequence[int]]], *, margin: float
) -> list[Tensor]:
    """The same from logits of the pass, whose rows stand in the order of the parts."""
    found, first = [], 0
    for rows, indices in parts:
        places = slice(first, first + len(indices))
        first += len(indices)
        reference = None if rows.reference is None else [rows.reference[index] for index in indices]
        losses = row_losses(
            logits[places], aligned.targets[places].to(logits.device), rows.term.kind, margin=margin,
            reference=reference,
        )  # fmt: skip
        found.append(losses.mean())
    return found


def losses_by_name(parts: Sequence[tuple[TermRows, Sequence[int]]], losses: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """Losses under their terms' names."""
    return {rows.term.name: loss for (rows, _), loss in zip(parts, losses, strict=True)}
