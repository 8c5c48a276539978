"""Two models of one architecture as one thing: what they share, and one pass that runs both.

1. The two have one class, one shape and one tokenizer, and are not equal.
2. Their modules are compared: weights that are equal are shared.
3. In a doubled pass the first model runs twice as many rows: the first half are its own, the second half are the
   other model's (`doubling.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, final

import torch
from torch import Tensor

from safe_sail.errors import ModelsDiffer, ModelsEqual, TokenizersDiffer
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.neurons.doubling import half_the_rows, served_by_first_half, served_by_half, twice_the_rows
from safe_sail.sites import Site, SiteKind

_IDLE_SETTINGS: Final = frozenset(
    ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache",
     "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "initializer_range")
)  # fmt: skip
"""Settings of a configuration that no pass reads."""


class _Compared(NamedTuple):
    """What a comparison of two models' weights found."""

    apart: tuple[str, ...]
    """Modules with a weight or buffer that differs."""
    shared: float
    """Share of the numbers that are equal module by module."""


@final
class ModelPair:
    """A first model, whose behaviour is changed, and a second one, whose activations are put in."""

    def __init__(self, first: HookedModel, second: HookedModel) -> None:
        """Compares the two.

        Raises:
            ModelsDiffer: they have other classes, shapes or dtypes.
            TokenizersDiffer: they read other tokens.
            ModelsEqual: their weights are the same.
        """
        _require_same_shape(first, second)
        _require_same_tokens(first, second)
        self.first = first
        self.second = second
        compared = _compare(first, second)
        self.modules_apart = compared.apart
        """Names of the modules whose weights differ."""
        self.shared_share = compared.shared
        """Share of the weights that are equal in both."""
        self.layers: tuple[int, ...] = tuple(
            layer for layer in range(first.dims.n_layers) if first.has_site(Site(SiteKind.MLP_ACT, layer))
        )
        """Layers with neurons; a mixture of experts has none."""
        self.can_double = (
            _settings(first) == _settings(second)
            and _devices(first) == _devices(second)
            and len(_devices(first)) == 1
            and all(_is_leaf(first.model.get_submodule(name)) for name in compared.apart)
        )
        """Whether one pass can run both: one device, equal settings, and differences in single maps only."""
        self.first_block_apart = _first_block_apart(first, compared.apart)
        """First block with a weight that differs; None where something before the blocks differs."""

    def __repr__(self) -> str:
        return f"ModelPair({self.first.model_id}, {self.second.model_id}, {self.shared_share:.3f} of weights shared)"

    def chat_batch(self, prompts: list[str] | tuple[str, ...], *, system: str | None = None) -> TokenBatch:
        """Prompts in the chat template of the first model, or of the second where the first has none.

        Raises:
            ChatTemplateMissing: neither tokenizer has a chat template.
            BadText: there is no prompt, or a prompt is empty.
            SequenceTooLong: a prompt has more tokens than the models accept.
        """
        has_own = getattr(self.first.tokenizer, "chat_template", None)
        return (self.first if has_own else self.second).chat_batch(prompts, system=system)

    def swapped(self) -> "ModelPair":
        """The pair the other way round."""
        return ModelPair(self.second, self.first)

    @contextmanager
    def doubled(self) -> Iterator[HookedModel]:
        """Scope in which the first model's passes take twice the rows, and run their second half as the second model.

        Raises:
            ModelsDiffer: one pass cannot run both.
        """
        self._require_one_pass()
        with served_by_half(self.first, self.second, self.modules_apart):
            yield self.first

    @contextmanager
    def doubled_until(self, last: int) -> Iterator[HookedModel]:
        """Scope in which the first model's passes run the second one too, from `first_block_apart` to block `last`.

        In these blocks the second half of the rows is the second model's. A pass takes and gives the first model's
        alone; where the two differ before their blocks it takes both models' rows, as in `doubled`.

        Raises:
            ModelsDiffer: one pass cannot run both.
        """
        self._require_one_pass()
        begin, blocks = self.first_block_apart, self.first.architecture.blocks
        once = self._once_until(last)
        alone = (*once, self.first.architecture.final_norm, self.first.architecture.unembed)
        alone += tuple(f"{blocks}.{layer}" for layer in range(last + 1, self.first.dims.n_layers))
        by_half = [name for name in self.modules_apart if not any(_is_within(name, one) for one in alone)]
        rows = half_the_rows(self.first, last) if begin is None else twice_the_rows(self.first, begin, last)
        with served_by_half(self.first, self.second, by_half), served_by_first_half(self.first, once), rows:
            yield self.first

    def _once_until(self, last: int) -> tuple[str, ...]:
        """Modules that need not run the second model's rows in a pass doubled until the activations of block `last`."""
        row = self.first.architecture
        once = [f"{row.blocks}.{last}.{row.mlp_down}"]
        if self.first_block_apart is not None:
            begin = f"{row.blocks}.{self.first_block_apart}"
            if all(_is_within(name, f"{begin}.{row.mlp}") for name in self.modules_apart if _is_within(name, begin)):
                once.append(f"{begin}.{row.attn_proj.split('.')[0]}")
        return tuple(once)

    def _require_one_pass(self) -> None:
        if not self.can_double:
            raise ModelsDiffer(f"{self!r}: one pass cannot run both; see `can_double`.")


def _is_within(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")


def _compare(first: HookedModel, second: HookedModel) -> _Compared:
    apart, equal, total = [], 0, 0
    theirs = dict(second.model.named_modules())
    for name, module in first.model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        size = sum(value.numel() for _, value in own)
        same = all(_equal(value, getattr(theirs[name], key)) for key, value in own)
        total, equal = total + size, equal + (size if same else 0)
        if not same:
            apart.append(name)
    if not apart:
        raise ModelsEqual(
            f"{first.model_id} and {second.model_id} have the same weights, so no neuron changes; give two models that "
            f"were trained differently."
        )
    return _Compared(tuple(apart), equal / total)


def _first_block_apart(handle: HookedModel, apart: tuple[str, ...]) -> int | None:
    """First block with a module apart, the number of blocks where there is none; None where one comes before them."""
    row = handle.architecture
    after, layers = {row.final_norm, row.unembed}, [handle.dims.n_layers]
    for name in apart:
        if name.startswith(f"{row.blocks}."):
            layers.append(int(name.removeprefix(f"{row.blocks}.").split(".")[0]))
        elif name not in after:
            return None
    return min(layers)


def _equal(mine: Tensor, theirs: Any) -> bool:
    return isinstance(theirs, Tensor) and torch.equal(mine, theirs.to(mine.device))


def _is_leaf(module: torch.nn.Module) -> bool:
    return not any(True for child in module.children() for _ in child.parameters())


def _devices(handle: HookedModel) -> set[torch.device]:
    return {parameter.device for parameter in handle.model.parameters()}


def _settings(handle: HookedModel) -> dict[str, Any]:
    return {name: value for name, value in handle.model.config.to_dict().items() if name not in _IDLE_SETTINGS}


def _require_same_shape(first: HookedModel, second: HookedModel) -> None:
    names = (first.architecture.class_name, second.architecture.class_name)
    if names[0] != names[1]:
        raise ModelsDiffer(
            f"{first.model_id} is a {names[0]}, {second.model_id} a {names[1]}; neurons can be compared between two "
            f"models of one architecture only."
        )
    shapes = [{name: value.shape for name, value in one.model.named_parameters()} for one in (first, second)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        came = [None if name not in each else tuple(each[name]) for each in shapes]
        if came[0] != came[1]:
            raise ModelsDiffer(
                f"`{name}` is {came[0]} in {first.model_id} and {came[1]} in {second.model_id}; give two models of one "
                f"shape, such as a model before and after alignment."
            )
    if first.dtype != second.dtype:
        raise ModelsDiffer(
            f"{first.model_id} is in {first.dtype}, {second.model_id} in {second.dtype}; load both in one dtype, or "
            f"rounding would pass for change."
        )


def _require_same_tokens(first: HookedModel, second: HookedModel) -> None:
    vocabularies = [one.tokenizer.get_vocab() for one in (first, second)]
    if vocabularies[0] != vocabularies[1]:
        keys = vocabularies[0].keys() | vocabularies[1].keys()
        token = min(key for key in keys if vocabularies[0].get(key) != vocabularies[1].get(key))
        raise TokenizersDiffer(
            f"token {token!r} is {vocabularies[0].get(token)} to {first.model_id} and {vocabularies[1].get(token)} to "
            f"{second.model_id}; the same ids must mean the same text to both models."
        )
