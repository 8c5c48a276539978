"""Translates SAELens' configuration of an SAE into our formula, site and record; what cannot be honoured is an error.

Keys are looked up in plain mappings: SAELens' own metadata object answers None to any name, a misspelt one included.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from safe_sail.errors import BadSite, SaeMetadataUnsupported
from safe_sail.records import SaeRef
from safe_sail.sae.form import Activation, InputNorm, SaeForm
from safe_sail.sites import Site, SiteKind

_ACTIVATIONS: Final[Mapping[str, Activation]] = {
    "standard": "relu",
    "topk": "topk",
    "abstopk": "abstopk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}

_REFUSED_ARCHITECTURES: Final = {
    "temporal": "it attends over the whole sequence, so a token's features are not a function of its activation",
    "matching_pursuit": "it selects features one after another, which this program does not implement",
}

_INPUT_NORMS: Final[Mapping[str, InputNorm]] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}

_AMBIGUOUS_HOOKS: Final = (
    (
        re.compile(r"blocks\.\d+\.ln\d\.hook_normalized"),
        "is taken before the norm's gain, the site `mlp_in` after it, and the SAE does not carry the gain (for a "
        "transcoder, give `norm_gain`)",
    ),
    (
        re.compile(r"blocks\.\d+\.hook_mlp_in"),
        "is the residual stream before the norm in TransformerLens, while SAELens also writes it for inputs after it",
    ),
)

BEFORE_GAIN: Final = re.compile(r"blocks\.(\d+)\.ln2\.hook_normalized")
"""TransformerLens' name of the MLP's input before its norm's gain."""

_MLP_INPUT_MODULE: Final = re.compile(
    r"(?:model\.)?(?:language_model\.)?layers\.(\d+)\.pre_feedforward_layernorm\.output"
)
"""Module whose output is the MLP's input, in the words of `hf_hook_name`; settles what `hook_mlp_in` means."""

_IN_THE_STREAM: Final = frozenset(
    {
        SiteKind.EMBED,
        SiteKind.RESID_PRE,
        SiteKind.ATTN_OUT,
        SiteKind.RESID_MID,
        SiteKind.MLP_OUT,
        SiteKind.RESID_POST,
    }
)

_PROCESSING: Final[Mapping[str, frozenset[SiteKind]]] = {
    "fold_ln": frozenset({SiteKind.MLP_IN}),
    "fold_value_biases": frozenset({SiteKind.HEAD_OUT}),
    "refactor_factored_attn_matrices": frozenset({SiteKind.HEAD_OUT}),
    "center_unembed": frozenset(),
}
"""TransformerLens' weight processing -> the sites whose values it changes; all other sites keep theirs."""

_PLACEMENT: Final = frozenset({"device", "device_map", "dtype", "n_devices", "torch_dtype"})
"""How the model was run, not what it computes."""

_SAME_WEIGHTS: Final[Mapping[str, str]] = {"gpt2-small": "gpt2"}
"""TransformerLens' names that the model hub spells otherwise."""


_TYPES: Final[Mapping[str, type | tuple[type, ...]]] = {
    "architecture": str,
    "d_in": int,
    "d_sae": int,
    "d_out": int,
    "apply_b_dec_to_input": bool,
    "rescale_acts_by_decoder_norm": bool,
    "metadata": dict,
    "activation_fn_kwargs": dict,
    "sae_lens_version": str,
    "model_name": str,
    "hook_name": str,
    "hook_name_out": str,
    "hf_hook_name": str,
    "hook_head_index": int,
    "hook_head_index_out": int,
    "model_from_pretrained_kwargs": dict,
    "prepend_bos": bool,
    "context_size": int,
    "seqpos_slice": (list, tuple),
}
"""Types of the keys that are read, wherever they stand; SAELens reads some of them without looking."""

_NEEDED: Final = ("architecture", "d_in", "d_sae", "metadata")


class SaeMetadata(NamedTuple):
    """A configuration, translated."""

    ref: SaeRef
    form: SaeForm
    out_site: Site
    prepend_bos: bool | None
    context_size: int | None
    notes: tuple[str, ...]


def require_types(config: Mapping[str, Any], where: str) -> None:
    """Refuses values of another type than their key's; a missing key is no error here.

    Raises:
        SaeMetadataUnsupported: a value has another type, or a size is not positive.
    """
    nested = config.get("metadata")
    for values in (config, nested if isinstance(nested, dict) else {}):
        for key, value in values.items():
            expected = _TYPES.get(key, object)
            if key == "k" and config.get("architecture") in ("topk", "abstopk"):
                expected = int
            is_flag_for_number = isinstance(value, bool) and expected is int
            if (value is None and key not in _NEEDED and key != "k") or (
                isinstance(value, expected) and not is_flag_for_number
            ):
                continue
            name = expected.__name__ if isinstance(expected, type) else "list"
            raise SaeMetadataUnsupported(f"{where}: `{key}` must be of type {name}, got {value!r}.")
    for key in ("d_in", "d_sae", "d_out"):
        size = config.get(key)
        if size is not None and size < 1:
            raise SaeMetadataUnsupported(f"{where}: `{key}` must be positive, got {size}.")


def read_metadata(
    config: Mapping[str, Any], *, slug: str, release: str | None, sae_id: str, site: Site | None, out_site: Site | None
) -> SaeMetadata:
    """What a SAELens configuration (its `to_dict`) says, in our terms.

    Raises:
        SaeMetadataUnsupported: it asks for something that cannot be honoured; the message says what and why.
    """
    require_types(config, f"SAE {slug}")
    metadata: Mapping[str, Any] = config.get("metadata") or {}
    architecture = str(config["architecture"])
    notes: list[str] = []
    where = _site_of(metadata, "hook_name", site, slug, notes)
    is_transcoder = "transcoder" in architecture
    writes = where
    if is_transcoder or metadata.get("hook_name_out") or out_site is not None:
        writes = _site_of(metadata, "hook_name_out", out_site, slug, notes)
    form = SaeForm(
        activation=_activation_of(architecture, slug),
        k=int(config["k"]) if "k" in config else None,
        subtract_b_dec=bool(config["apply_b_dec_to_input"]) and not is_transcoder,
        rescale_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        input_norm=_input_norm_of(config, slug),
        centre_input=_centring_of(metadata, where, slug, notes),
        head=_head_of(config, metadata, where, slug),
    )
    positions = metadata.get("seqpos_slice")
    if positions and any(bound is not None for bound in positions):
        notes.append(f"It was trained on the positions {tuple(positions)} (start, stop, step) of each text only.")
    return SaeMetadata(
        ref=SaeRef(
            slug=slug,
            release=release,
            sae_id=sae_id,
            model_id=metadata.get("model_name"),
            site=where,
            d_in=int(config["d_in"]),
            width=int(config["d_sae"]),
            architecture=architecture,
        ),
        form=form,
        out_site=writes,
        prepend_bos=metadata.get("prepend_bos"),
        context_size=metadata.get("context_size"),
        notes=tuple(notes),
    )


def same_model(one: str, other: str) -> bool:
    """Whether two model names mean one model: the last path component counts, in any case."""
    return _plain_model_name(one) == _plain_model_name(other)


def slug_of(name: str) -> str:
    """The name as a slug: every run of characters that a slug may not hold becomes one `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-") or "sae"


def _plain_model_name(name: str) -> str:
    last = name.rstrip("/").rpartition("/")[2].lower()
    return _SAME_WEIGHTS.get(last, last)


def _activation_of(architecture: str, slug: str) -> Activation:
    if architecture in _ACTIVATIONS:
        return _ACTIVATIONS[architecture]
    reason = _REFUSED_ARCHITECTURES.get(architecture, "its formula is not known here")
    raise SaeMetadataUnsupported(
        f"SAE {slug} is `{architecture}`: {reason}. Expected one of {', '.join(_ACTIVATIONS)}."
    )


def _site_of(metadata: Mapping[str, Any], key: str, given: Site | None, slug: str, notes: list[str]) -> Site:
    argument = "site" if key == "hook_name" else "out_site"
    name = metadata.get(key)
    if not name:
        if given is None:
            raise SaeMetadataUnsupported(f"SAE {slug} does not say its {key}; give `{argument}`.")
        return given
    for pattern, reason in _AMBIGUOUS_HOOKS:
        if pattern.fullmatch(name):
            module = _MLP_INPUT_MODULE.fullmatch(metadata.get("hf_hook_name") or "")
            if module and key == "hook_name" and name == f"blocks.{module[1]}.hook_mlp_in":
                return _agreed(Site(SiteKind.MLP_IN, int(module[1])), given, key, name, slug)
            if given is None:
                raise SaeMetadataUnsupported(
                    f"SAE {slug}: {key} `{name}` {reason}. Give `{argument}` if you know which value it was trained on."
                )
            notes.append(f"Its {key} `{name}` was taken to mean `{given}` by whoever loaded it.")
            return given
    try:
        found = Site.from_hook_name(name)
    except BadSite as error:
        if given is None:
            raise SaeMetadataUnsupported(f"SAE {slug}: {error}") from error
        notes.append(f"Its {key} `{name}` was taken to mean `{given}` by whoever loaded it.")
        return given
    if name == "hook_embed":
        notes.append(
            "It reads token embeddings without position embeddings; `embed` includes them where a model adds them."
        )
    return _agreed(found, given, key, name, slug)


def _agreed(found: Site, given: Site | None, key: str, name: str, slug: str) -> Site:
    if given is not None and given != found:
        raise SaeMetadataUnsupported(f"SAE {slug}: {key} `{name}` means `{found}`, the caller says `{given}`.")
    return found


def _input_norm_of(config: Mapping[str, Any], slug: str) -> InputNorm:
    name = config["normalize_activations"]
    if name in _INPUT_NORMS:
        return _INPUT_NORMS[name]
    reason = {
        "expected_average_only_in": "the factor was not folded into the weights and is not stored",
        "covariance_whitening": "the whitening was not folded into the weights and is not stored",
    }.get(name, "it is not known here")
    raise SaeMetadataUnsupported(
        f"SAE {slug}: normalize_activations `{name}` cannot be honoured, {reason}. Fold it with SAELens and save it; "
        f"expected one of {', '.join(_INPUT_NORMS)}."
    )


def _centring_of(metadata: Mapping[str, Any], site: Site, slug: str, notes: list[str]) -> bool:
    """Whether the input is centred; refuses every other processing of the model that changes this site's values."""
    centre = False
    for key, value in (metadata.get("model_from_pretrained_kwargs") or {}).items():
        if key in _PLACEMENT or value is False or value is None:
            continue
        if key == "center_writing_weights":
            # sites outside the stream stand behind a LayerNorm, which removes the mean itself
            centre = site.kind in _IN_THE_STREAM
        elif site.kind in _PROCESSING.get(key, frozenset({site.kind})):
            raise SaeMetadataUnsupported(
                f"SAE {slug} was trained on a model loaded with {key}={value!r}, which changes `{site}`; activations "
                f"of the model as published are not what it expects."
            )
    if centre:
        notes.append(
            "Its input is centred over d_model: it was trained on a model with centred writing weights, "
            "which is possible where norms remove the mean."
        )
    return centre


def _head_of(config: Mapping[str, Any], metadata: Mapping[str, Any], site: Site, slug: str) -> int | None:
    reshape, head = config["reshape_activations"], metadata.get("hook_head_index")
    if reshape not in ("none", "hook_z"):
        raise SaeMetadataUnsupported(
            f"SAE {slug}: reshape_activations `{reshape}` is not known; expected none or hook_z."
        )
    if site.kind is not SiteKind.HEAD_OUT and (reshape == "hook_z" or head is not None):
        raise SaeMetadataUnsupported(
            f"SAE {slug} reads heads (reshape_activations `{reshape}`, hook_head_index {head}), and `{site}` has none."
        )
    if head is not None and head < 0:
        raise SaeMetadataUnsupported(f"SAE {slug}: heads count from 0; got hook_head_index {head}.")
    if metadata.get("hook_head_index_out") is not None:
        raise SaeMetadataUnsupported(
            f"SAE {slug} writes to one head (hook_head_index_out {metadata['hook_head_index_out']}), which is not "
            f"supported."
        )
    return None if head is None else int(head)
