"""A guard: before a model answers, whether the answer will be unsafe; and the refusal that is sent instead.

1. A reader gives features of the prompt's last token; a probe turns them into a probability.
2. From the threshold on the prompt is refused, without a token being generated; below it the model answers.
3. A guard is a folder: `guard.safetensors` holds the numbers, `guard.json` says what they are for. No code is loaded.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from safe_sail.errors import ExportRefused, GuardUnfit
from safe_sail.evaluation.replies import greedy_replies
from safe_sail.model.handle import NO_EDITS, HookedModel
from safe_sail.neurons.probe import Probe
from safe_sail.neurons.readers import DirectionReader, NeuronReader, Reader, SaeReader, read_all
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import Site

FORMAT: Final = "safe-sail guard 1"
REFUSAL_TEXT: Final = "sorry, i can not help with that."


class Answer(NamedTuple):
    """What a guarded model says to one prompt."""

    probability: float
    """That the answer would be unsafe."""
    refused: bool
    reply: str
    """The refusal text, or the model's own reply."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """What is read, how it is weighed, and from which probability on a prompt is refused."""

    model_id: str
    features: str
    """safety neurons, SAE features, or refusal direction."""
    reader: Reader
    probe: Probe
    threshold: float
    system: str | None = None
    """System prompt that the guard was trained with."""

    def probabilities(
        self, handle: HookedModel, prompts: Sequence[str], *, batch_rows: int = 64
    ) -> Float[Tensor, " prompts"]:
        """Chance of an unsafe answer to each prompt, float64.

        Raises:
            ChatTemplateMissing: the tokenizer has no chat template.
            BadText: there is no prompt, or a prompt is empty.
            SequenceTooLong: a prompt has more tokens than the model accepts.
            GuardUnfit: the guard was made for another model.
        """
        if handle.model_id != self.model_id:
            raise GuardUnfit(f"this guard was trained on {self.model_id} and cannot read {handle.model_id}.")
        batch = handle.chat_batch(prompts, system=self.system)
        (features,) = read_all(handle, batch, [self.reader], batch_rows)
        return self.probe.probabilities(features)

    def answer(
        self,
        handle: HookedModel,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        refusal_text: str = REFUSAL_TEXT,
        batch_rows: int = 64,
    ) -> list[Answer]:
        """A refusal where the threshold is reached, else the model's greedy reply; refused prompts generate nothing.

        Raises:
            ChatTemplateMissing: the tokenizer has no chat template.
            BadText: there is no prompt, or a prompt is empty.
            SequenceTooLong: prompt and reply together exceed the model's positions.
            GuardUnfit: the guard was made for another model.
        """
        chances = self.probabilities(handle, prompts, batch_rows=batch_rows)
        replies = [refusal_text] * len(prompts)
        passed = (chances < self.threshold).nonzero()[:, 0].tolist()
        if passed:
            batch = handle.chat_batch([prompts[row] for row in passed], system=self.system)
            texts = greedy_replies(handle, batch, NO_EDITS, max_new_tokens=max_new_tokens, batch_rows=batch_rows)
            for row, text in zip(passed, texts, strict=True):
                replies[row] = text
        return [
            Answer(float(chance), bool(chance >= self.threshold), reply)
            for chance, reply in zip(chances, replies, strict=True)
        ]


def save_guard(guard: Guard, folder: Path) -> None:
    """Writes the guard as a new folder.

    Raises:
        ExportRefused: there is something at the path.
    """
    if folder.exists():
        raise ExportRefused(f"{folder} exists; a guard is written to a new folder, give another name or remove it.")
    reader = guard.reader
    tensors = {"mean": guard.probe.mean, "scale": guard.probe.scale, "weight": guard.probe.weight}
    facts: dict[str, Any] = {
        "format": FORMAT, "model_id": guard.model_id, "features": guard.features, "threshold": guard.threshold,
        "bias": guard.probe.bias, "system": guard.system,
    }  # fmt: skip
    if isinstance(reader, NeuronReader):
        tensors["neurons"] = reader.neurons
    elif isinstance(reader, SaeReader):
        tensors["sae_features"] = reader.features
        facts |= {"sae": reader.sae.ref.slug, "site": str(reader.sae.site)}
    elif isinstance(reader, DirectionReader):
        tensors["direction"] = reader.vector
        facts |= {"site": str(reader.site)}
    else:
        raise ExportRefused(f"a reader of class {type(reader).__name__} has no form on disk.")
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "guard.safetensors")
    (folder / "guard.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def load_guard(folder: Path, *, sae: SAEHandle | None = None) -> Guard:
    """The guard that `save_guard` wrote; one that reads SAE features needs its SAE.

    Raises:
        GuardUnfit: a file is missing, damaged or of another format, or the SAE is missing or another one.
    """
    try:
        facts = json.loads((folder / "guard.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "guard.safetensors")
        if facts["format"] != FORMAT:
            raise GuardUnfit(f"{folder}: expected format `{FORMAT}`, got `{facts['format']}`; train the guard again.")
        probe = Probe(tensors["mean"], tensors["scale"], tensors["weight"], float(facts["bias"]))
        guard = Guard(
            model_id=str(facts["model_id"]),
            features=str(facts["features"]),
            reader=_reader(folder, facts, tensors, sae),
            probe=probe,
            threshold=float(facts["threshold"]),
            system=facts["system"],
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise GuardUnfit(
            f"{folder}: expected guard.json and guard.safetensors as `save_guard` writes them ({error!r}); train the "
            f"guard again."
        ) from error
    shapes = {tuple(part.shape) for part in (probe.mean, probe.scale, probe.weight)}
    if shapes != {(guard.reader.n_features,)}:
        raise GuardUnfit(f"{folder}: weights of shapes {sorted(shapes)} for {guard.reader.n_features} features.")
    return guard


def _reader(folder: Path, facts: dict[str, Any], tensors: dict[str, Tensor], sae: SAEHandle | None) -> Reader:
    if "neurons" in tensors:
        return NeuronReader(tensors["neurons"].reshape(-1, 2))
    if "direction" in tensors:
        return DirectionReader(Site.parse(facts["site"]), tensors["direction"].reshape(-1))
    if sae is None or sae.ref.slug != facts["sae"]:
        came = "none" if sae is None else sae.ref.slug
        raise GuardUnfit(
            f"{folder}: the guard reads features of SAE {facts['sae']}; got {came}. Load it with that SAE."
        )
    return SaeReader(sae, tensors["sae_features"])
