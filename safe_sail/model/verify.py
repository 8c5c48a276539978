"""Identities checked once after loading, on eight random tokens: a row that does not describe the model is found here.

1. resid_post = resid_pre + attn_out + mlp_out in every block.
2. The attention projection's output is the sum over heads of head_out[h] @ W_O[h], plus its bias.
3. Padding on the left, with position ids, does not change the stream.

Tolerances are multiples of the dtype's eps, so they hold in bfloat16 and still bite: a wrong path misses by the size of
the stream itself.
"""

import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from safe_sail.errors import ArchitectureMismatch
from safe_sail.model import weights
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.sites import Site, SiteKind

_N_TOKENS = 8
_N_PADDING = 3


def verify_model(handle: HookedModel) -> None:
    """Nothing, when the model keeps the identities of its row.

    Raises:
        ArchitectureMismatch: it does not; the message names identity, layer, error and the transformers version.
    """
    layers = range(handle.dims.n_layers)
    kinds = (SiteKind.RESID_PRE, SiteKind.HEAD_OUT, SiteKind.ATTN_OUT, SiteKind.MLP_OUT, SiteKind.RESID_POST)
    sites = [Site(kind, layer) for layer in layers for kind in kinds]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, handle.dims.d_vocab, (1, _N_TOKENS), generator=generator)
    plain = TokenBatch(ids, torch.ones_like(ids), ("verify",))
    with torch.no_grad(), _ProjectionOutputs(handle) as projected:
        at = handle.capture(plain, sites)
        for layer in layers:
            _check_sum(handle, layer, *(at[Site(kind, layer)] for kind in kinds if kind is not SiteKind.HEAD_OUT))
            _check_heads(handle, layer, at[Site(SiteKind.HEAD_OUT, layer)], projected[layer])
        last = Site(SiteKind.RESID_POST, handle.dims.n_layers - 1)
        _check_padding(handle, plain, at[last], last)


class _ProjectionOutputs(dict[int, Tensor]):
    """Raw outputs of the attention projections, which are not a site where a post-norm follows."""

    def __init__(self, handle: HookedModel) -> None:
        super().__init__()
        self._handle = handle

    def __enter__(self) -> "_ProjectionOutputs":
        def reader(layer: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
            def hook(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                self[layer] = output

            return hook

        path = self._handle.architecture.attn_proj
        self._hooks = [
            block.get_submodule(path).register_forward_hook(reader(layer))
            for layer, block in enumerate(self._handle.blocks)
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _check_sum(handle: HookedModel, layer: int, pre: Tensor, attn: Tensor, mlp: Tensor, post: Tensor) -> None:
    eps = torch.finfo(post.dtype).eps
    parts = [part.to(post.device).float() for part in (pre, attn, mlp)]
    # Two additions in the model's dtype, each off by at most eps/2 of its result; the results are below three parts.
    bound = 4 * eps * max(float(part.abs().max()) for part in (*parts, post.float()))
    _require(handle, f"resid_post.{layer} = resid_pre + attn_out + mlp_out", sum(parts) - post.float(), bound)


def _check_heads(handle: HookedModel, layer: int, heads: Tensor, output: Tensor) -> None:
    W_O, b_O = weights.W_O(handle, layer).float(), weights.b_O(handle, layer)
    by_head = torch.einsum("bshd,hdm->bsm", heads.to(W_O.device).float(), W_O)
    size = torch.einsum("bshd,hdm->bsm", heads.to(W_O.device).float().abs(), W_O.abs())
    ours = by_head if b_O is None else by_head + b_O.float()
    theirs = output.to(W_O.device).float()
    # The product is rounded once to the model's dtype (8: split sums round more than once); terms are added in float32.
    bound = 8 * torch.finfo(output.dtype).eps * float(theirs.abs().max()) + 8 * 1.2e-7 * float(size.max())
    _require(handle, f"projection.{layer} = sum over heads of head_out @ W_O + b_O", ours - theirs, bound)


def _check_padding(
    handle: HookedModel, plain: TokenBatch, expected: Float[Tensor, "1 seq d_model"], last: Site
) -> None:
    pad = plain.token_ids[:, :1].expand(1, _N_PADDING)
    padded = TokenBatch(
        torch.cat([pad, plain.token_ids], dim=1),
        torch.cat([torch.zeros_like(pad), plain.attention_mask], dim=1),
        plain.source_ids,
    )
    came = handle.capture(padded, [last])[last][:, _N_PADDING:].float()
    errors = (came - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    # The median, because in a mixture one token at a tie between experts may go another way by one rounding. 32 eps:
    # the roundings of some hundred layers add like a random walk; without position ids the error is of order one.
    bound = min(32 * torch.finfo(handle.dtype).eps, 0.25)
    _require(handle, f"{last} does not see padding on the left (relative error)", errors.median(), bound)


def _require(handle: HookedModel, identity: str, error: Tensor | int, bound: float) -> None:
    worst = float(torch.as_tensor(error).abs().max())
    if not worst <= bound:
        raise ArchitectureMismatch(
            f"{handle.model_id}: `{identity}` is off by {worst:.3g}, expected at most {bound:.3g} in {handle.dtype}. "
            f"The row of {handle.architecture.class_name} does not describe the model of transformers "
            f"{transformers.__version__}; use a version that the project names, or correct the row."
        )
