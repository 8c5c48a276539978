"""`HookedModel`: capture, edit, logits and generate, by `Site`.

1. A call collects what it has to do per module border: which edits, which captures, where to stop.
2. Hooks are registered on those borders alone and removed in `finally`; none lives outside a call or a `with`.
3. The model runs with position ids computed from the mask, so padding on either side is right for every family.
4. When no logits are wanted the pass ends at the deepest requested site, inside a block if need be, without the head.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safe_sail.errors import BadSettings, BadSite, BadText, EditRefused, SequenceTooLong
from safe_sail.model.architectures import Architecture
from safe_sail.model.chat import chat_rows
from safe_sail.model.decoding import Decoding
from safe_sail.model.dims import ModelDims, check_site, dims_of
from safe_sail.model.edits import Edit, Step
from safe_sail.model.hooks import Stop, Work, grad_scope, installed
from safe_sail.model.tokens import PaddingSide, TokenBatch, batch_of_ids, batch_of_texts, pad_id_of
from safe_sail.sites import Site, SiteKind

NO_EDITS: Mapping[Site, Edit] = MappingProxyType({})

LogitPositions = Literal["all", "last", "none"]


class Run(NamedTuple):
    """What one pass gave."""

    captures: dict[Site, Tensor]
    """By requested site, after edits at the same site; [batch, seq, ...] on the device of the site's block."""
    logits: Float[Tensor, "batch seq_or_1 d_vocab"] | None
    """None when they were not asked for."""


@final
class HookedModel:
    """A Hugging Face causal language model, read and edited by `Site`. Not safe for use from several threads."""

    def __init__(self, model: Any, tokenizer: Any, architecture: Architecture, *, model_id: str) -> None:
        self.model = model
        """The Hugging Face model itself, in evaluation mode."""
        self.tokenizer = tokenizer
        self.architecture = architecture
        self.model_id = model_id
        """Hub name or folder name; an SAE names its model by it."""
        self.dims: ModelDims = dims_of(architecture, model, model.config)
        self.blocks: tuple[torch.nn.Module, ...] = tuple(model.get_submodule(architecture.blocks).children())
        self._step: Step | None = None

    @property
    def device(self) -> torch.device:
        """Where token ids go; under a device map, the device of the embedding."""
        return self._embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual stream."""
        return self._embedding.dtype

    @property
    def _embedding(self) -> Tensor:
        weight: Tensor = self.model.get_submodule(self.architecture.embed).weight
        return weight

    def __repr__(self) -> str:
        return f"HookedModel({self.model_id}, {self.architecture.class_name}, {self.dtype}, {self.device})"

    # --- sites

    def sites(self) -> tuple[Site, ...]:
        """Every site this model has, in the order of computation."""
        found = [Site(SiteKind.EMBED)]
        for layer in range(self.dims.n_layers):
            for kind in SiteKind:
                if kind is not SiteKind.EMBED and self.has_site(Site(kind, layer)):
                    found.append(Site(kind, layer))
        return tuple(found)

    def has_site(self, site: Site) -> bool:
        """Whether this model has the site: a parallel block has no `resid_mid`, a mixture no `mlp_act`."""
        try:
            self.check_site(site)
        except BadSite:
            return False
        return True

    def check_site(self, site: Site) -> None:
        """Nothing, when this model has the site.

        Raises:
            BadSite: there is no such layer, or this layer has no such place; the message says why.
        """
        check_site(self.architecture, self.blocks, self.model.config, site)

    def site_shape(self, site: Site) -> tuple[int, ...]:
        """Shape of one token's value at the site: `(d_model,)`, `(n_heads, d_head)` or `(d_mlp,)`."""
        self.check_site(site)
        if site.kind is SiteKind.HEAD_OUT:
            return (self.dims.n_heads, self.dims.d_head)
        return (self.dims.d_mlp,) if site.kind is SiteKind.MLP_ACT else (self.dims.d_model,)

    # --- texts

    def batch(
        self,
        texts: Sequence[str],
        *,
        padding_side: PaddingSide = "left",
        source_ids: Sequence[str] | None = None,
        add_special_tokens: bool = True,
    ) -> TokenBatch:
        """Texts as a batch for this model.

        Raises:
            BadText: there is no text, or a text has no content tokens.
            SequenceTooLong: a text has more tokens than the model accepts.
        """
        return batch_of_texts(
            self.tokenizer,
            texts,
            padding_side=padding_side,
            max_positions=self.dims.max_positions,
            source_ids=source_ids,
            add_special_tokens=add_special_tokens,
        )

    def chat_batch(
        self,
        prompts: Sequence[str],
        *,
        system: str | None = None,
        padding_side: PaddingSide = "left",
        source_ids: Sequence[str] | None = None,
    ) -> TokenBatch:
        """User prompts in the tokenizer's chat template, up to where the answer begins (see `model/chat.py`).

        Raises:
            ChatTemplateMissing: the tokenizer has no chat template.
            BadText: there is no prompt, or a prompt is empty.
            SequenceTooLong: a prompt has more tokens than the model accepts.
        """
        return batch_of_ids(
            chat_rows(self.tokenizer, prompts, system=system),
            pad_id=pad_id_of(self.tokenizer),
            padding_side=padding_side,
            max_positions=self.dims.max_positions,
            source_ids=source_ids,
        )

    # --- passes

    def capture(
        self, batch: TokenBatch, sites: Sequence[Site], edits: Mapping[Site, Edit] = NO_EDITS
    ) -> dict[Site, Tensor]:
        """Values at the sites, each [batch, seq, ...]; the pass stops after the deepest one.

        Values are after edits at the same site, in the model's dtype, and where grad is enabled the model goes on from
        them, so gradients reach them; `resid_mid` alone is a sum beside the model's own.

        Raises:
            BadSite: the model lacks a site.
            EditRefused: an edit changed shape, dtype or its input, or sits at `resid_mid`.
        """
        return self.run(batch, sites, edits, logits="none").captures

    def logits(
        self,
        batch: TokenBatch,
        edits: Mapping[Site, Edit] = NO_EDITS,
        *,
        positions: Literal["all", "last"] = "all",
        in_float32: bool = False,
    ) -> Float[Tensor, "batch seq_or_1 d_vocab"]:
        """Next-token logits; with `positions="last"` only after each row's last real token, [batch, 1, d_vocab].

        `in_float32` casts after the head, whose product stays in the model's dtype.

        Raises:
            BadSite: the model lacks a site.
            EditRefused: an edit changed shape, dtype or its input, or sits at `resid_mid`.
        """
        found = self.run(batch, (), edits, logits=positions).logits
        assert found is not None
        return found.float() if in_float32 else found

    def run(
        self,
        batch: TokenBatch,
        sites: Sequence[Site] = (),
        edits: Mapping[Site, Edit] = NO_EDITS,
        *,
        logits: LogitPositions = "all",
    ) -> Run:
        """Captures and logits of one pass; `logits="none"` stops it after the deepest site.

        Raises:
            BadSite: the model lacks a site.
            EditRefused: an edit changed shape, dtype or its input, or sits at `resid_mid`.
        """
        self._check(batch, edits)
        for site in sites:
            self.check_site(site)
        if logits == "none" and not sites:
            return Run({}, None)
        batch = batch.to(self.device)
        work = Work(edits, frozenset(sites), max(sites) if logits == "none" else None)
        keep: Any = batch.last_real[:, None] if logits == "last" else 0
        found: Tensor | None = None
        step = Step(batch.position_ids, batch.is_real, is_prefill=True)
        with grad_scope(), self._hooks(work), self._at(step), suppress(Stop):
            found = self.model(
                input_ids=batch.token_ids,
                attention_mask=batch.attention_mask.long(),
                position_ids=batch.position_ids,
                use_cache=False,
                logits_to_keep=keep,
            ).logits
        return Run({site: work.captures[site] for site in sites}, found)

    def generate(
        self, batch: TokenBatch, max_new_tokens: int, edits: Mapping[Site, Edit] = NO_EDITS
    ) -> Int[Tensor, "batch new"]:
        """Greedy continuation (ties: the smallest id) with the key-value cache, without the prompt.

        A row ends with its end-of-text token and is padded after it; the width is that of the longest row. Edits see
        the prompt once and then one token at a time (`Step.is_prefill`). Rows padded on the right are moved to the
        left.

        Raises:
            BadSettings: `max_new_tokens` is less than 1.
            SequenceTooLong: prompt and continuation together exceed the model's positions.
            BadSite: the model lacks a site.
            EditRefused: an edit changed shape, dtype or its input, or sits at `resid_mid`.
        """
        pad_id = pad_id_of(self.tokenizer)
        ends = torch.tensor(self.end_ids(), device=self.device, dtype=torch.long)
        running = torch.ones(len(batch), dtype=torch.bool, device=self.device)
        new: list[Tensor] = []
        with self.decoding(batch, max_new_tokens, edits) as decoding:
            logits = decoding.read_prompt()
            while True:
                assert logits is not None
                new.append(torch.where(running, logits.argmax(dim=-1), pad_id))
                running = running & ~torch.isin(new[-1], ends)
                if len(new) == max_new_tokens or not bool(running.any()):
                    return torch.stack(new, dim=1)
                logits = decoding.read_token(new[-1], running)

    @contextmanager
    def decoding(
        self,
        batch: TokenBatch,
        max_new_tokens: int,
        edits: Mapping[Site, Edit] = NO_EDITS,
        *,
        until: Site | None = None,
    ) -> Iterator[Decoding]:
        """Scope in which a batch is continued by tokens of the caller's choice, with the key-value cache, without grad.

        Rows padded on the right are moved to the left. With `until`, an edited site, every pass ends after it and gives
        no logits.

        Raises:
            BadSettings: `max_new_tokens` is less than 1.
            SequenceTooLong: prompt and continuation together exceed the model's positions.
            BadSite: the model lacks a site.
            EditRefused: an edit changed shape, dtype or its input, or sits at `resid_mid`.
        """
        if max_new_tokens < 1:
            raise BadSettings(f"max_new_tokens: expected at least 1, got {max_new_tokens}.")
        self._check(batch, edits, reserve=max_new_tokens)
        with torch.no_grad(), grad_scope(), self._hooks(Work(edits, stop=until)):
            yield Decoding(self.model, batch.left_padded().to(self.device), self._at)

    @contextmanager
    def editing(self, edits: Mapping[Site, Edit]) -> Iterator[None]:
        """Scope in which every pass is edited, also one of `self.model` itself; edits of a call come after these.

        Raises:
            BadSite: the model lacks a site.
            EditRefused: an edit sits at `resid_mid`.
        """
        self._check_edits(edits)
        with self._hooks(Work(edits)):
            yield

    # --- checks

    def _check(self, batch: TokenBatch, edits: Mapping[Site, Edit], reserve: int = 0) -> None:
        self._check_edits(edits)
        longest = int(batch.lengths.max()) + reserve
        if longest > self.dims.max_positions:
            raise SequenceTooLong(
                f"{longest} tokens{' with the continuation' if reserve else ''}; {self.model_id} accepts "
                f"{self.dims.max_positions}. Shorten the text or ask for fewer new tokens."
            )
        highest = int(batch.token_ids.max())
        if highest >= self.dims.d_vocab:
            raise BadText(
                f"token id {highest} is beyond the {self.dims.d_vocab} tokens of {self.model_id}; "
                f"the ids come from another tokenizer."
            )

    def _check_edits(self, edits: Mapping[Site, Edit]) -> None:
        for site in edits:
            self.check_site(site)
            if site.kind is SiteKind.RESID_MID:
                raise EditRefused(
                    f"`{site}` is a sum that no module returns, so replacing it would round the stream; edit "
                    f"`attn_out.{site.layer}` or `resid_pre.{site.layer}`, which enter the same sum."
                )

    def end_ids(self) -> list[int]:
        """Ids that end a reply; none where the model names none."""
        for owner in (self.model.generation_config, self.model.config, self.tokenizer):
            ends = getattr(owner, "eos_token_id", None)
            if ends is not None:
                return list(ends) if isinstance(ends, list | tuple) else [int(ends)]
        return []

    # --- hooks

    def _hooks(self, work: Work) -> AbstractContextManager[None]:
        return installed(
            work, self.architecture, self.blocks, (self.dims.n_heads, self.dims.d_head), lambda: self._step
        )

    @contextmanager
    def _at(self, step: Step) -> Iterator[None]:
        before, self._step = self._step, step
        try:
            yield
        finally:
            self._step = before
