"""Reward and cost models as scorers: a classifier with one output reads a prompt with its reply.

1. Where its tokenizer has a chat template, prompt and reply are the turns of a user and an assistant; elsewhere a pair.
2. Rows of similar length share a batch; the score is the output, unchanged. Which sign is good is the model's own
   affair: a causal effect is a share of a difference and the same for a reward and a cost.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from safe_sail.evaluation.llm_judge import Said
from safe_sail.model.load import load_classifier
from safe_sail.neurons.scorers import Scorer


def load_reward_scorer(
    path_or_name: str | Path, *, device: str | torch.device, dtype: torch.dtype, batch_rows: int = 16
) -> Scorer:
    """A scorer by the classifier of this folder or hub name; texts too long for it get no score.

    Raises:
        FileMissing: it does not exist.
        UnsafeWeights: it holds pickle weights only.
        DamagedWeights: a file is damaged, or it has no output's weights.
        UnknownArchitecture: it has another number of outputs than one.
        DeviceUnavailable: the device is not there.
    """
    model, tokenizer = load_classifier(path_or_name, device=device, dtype=dtype)

    def score(said: Sequence[Said]) -> list[float | None]:
        distinct = list(dict.fromkeys(said))
        encoded = [_encoded(tokenizer, one) for one in distinct]
        lengths = [len(one["input_ids"]) for one in encoded]
        longest = getattr(model.config, "max_position_embeddings", None) or max(lengths, default=0)
        fit = sorted((row for row in range(len(encoded)) if lengths[row] <= longest), key=lambda row: lengths[row])
        scores: dict[Said, float] = {}
        for first in range(0, len(fit), batch_rows):
            rows = fit[first : first + batch_rows]
            found = _outputs(model, tokenizer, [encoded[row] for row in rows])
            scores |= {distinct[row]: value for row, value in zip(rows, found, strict=True)}
        return [scores.get(one) for one in said]

    return Scorer(f"score of {Path(path_or_name).name}", score)


def _encoded(tokenizer: Any, said: Said) -> dict[str, list[int]]:
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": said.prompt}, {"role": "assistant", "content": said.reply}]
        return dict(tokenizer.apply_chat_template(turns, return_dict=True))
    return dict(tokenizer(said.prompt, said.reply))


def _outputs(model: Any, tokenizer: Any, rows: Sequence[dict[str, list[int]]]) -> list[float]:
    # on the right: the class takes the last token that is no padding
    batch = tokenizer.pad(list(rows), padding_side="right", return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch.to(model.device)).logits
    found: list[float] = logits[:, 0].float().tolist()
    return found
