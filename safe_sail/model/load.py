"""Folders and hub names to `HookedModel`: the only call of `from_pretrained` for models.

1. The device and dtype are there.
2. A folder holds a configuration and whole safetensors files; pickle weights are refused, and code from the model's
   repository never runs.
3. The class has a row in the architecture table.
4. Every weight of the configuration was in the files, and every weight of the files went somewhere.
5. The identities of `verify.py` hold.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from safe_sail.errors import (
    BadSettings,
    DamagedWeights,
    DeviceUnavailable,
    FileMissing,
    UnknownArchitecture,
    UnsafeWeights,
)
from safe_sail.model.adapters import base_of, is_adapter, with_adapter
from safe_sail.model.architectures import architecture_of
from safe_sail.model.handle import HookedModel
from safe_sail.model.hub import require_hub
from safe_sail.model.verify import verify_model

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")
_HARMLESS = (".inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
"""Buffers that older releases saved and the model computes."""


def load_model(
    path_or_name: str | Path,
    *,
    device: str | torch.device | None,
    dtype: torch.dtype,
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    model_id: str | None = None,
    base: str | Path | None = None,
    verify: bool = True,
) -> HookedModel:
    """A model and its tokenizer, in evaluation mode, without grad on its parameters.

    A folder of a PEFT adapter is loaded on `base`, or on the base that it names, and merged (`model/adapters.py`).

    `device` is None exactly when `device_map` places the blocks. `model_id` defaults to the hub name or the folder's
    name. A tokenizer without a padding token pads with its end-of-text token; batches carry their own mask, so that
    token still counts where it stands in a text. `attn_implementation` is transformers' (SDPA where the family has it).

    Raises:
        FileMissing: the folder, a file of it, or the hub name does not exist.
        UnsafeWeights: the folder holds pickle weights only.
        DamagedWeights: a file is truncated or malformed, or weights and configuration do not fit.
        UnknownArchitecture: the model class has no row, or its row refuses the configuration.
        ArchitectureMismatch: an identity of the row does not hold.
        DeviceUnavailable: the device is not there, or the device map leaves weights off every device.
        BadSettings: the dtype is none of float32, bfloat16, float16, or device and device map contradict each other.
    """
    _check_placement(device, dtype, device_map)
    source = str(path_or_name)
    is_folder = Path(source).exists() or isinstance(path_or_name, Path) or source.startswith((".", "/", "~"))
    if is_folder:
        source = str(Path(source).expanduser())
        if is_adapter(Path(source)):
            below = load_model(
                base_of(Path(source)) if base is None else base, device=device, dtype=dtype, device_map=device_map,
                attn_implementation=attn_implementation, verify=False,
            )  # fmt: skip
            return _adapted(below, Path(source), model_id, verify)
        _check_folder(Path(source))
    if base is not None:
        raise BadSettings(f"{source}: a base model was given, and this is no adapter folder; leave it out.")
    config = read_config(source)
    class_names = getattr(config, "architectures", None) or [f"(none named, model type {config.model_type})"]
    architecture_of(class_names[0], config)
    options: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "attn_implementation": attn_implementation}
    model, info = _from_pretrained(
        source, config, {name: value for name, value in options.items() if value is not None}
    )
    if type(model).__name__ != class_names[0]:
        raise UnknownArchitecture(
            f"{source}: config.json names `{class_names[0]}`, transformers builds "
            f"`{type(model).__name__}`; they must agree."
        )
    row = architecture_of(class_names[0], model.config)  # again: now the attention implementation is decided
    _check_info(source, model, info)
    if device_map is None:
        model = model.to(device)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise DeviceUnavailable(
            f"{source}: the device map leaves weights off every device (offload), where they cannot be read; use more "
            f"devices or a smaller dtype."
        )
    model.eval().requires_grad_(False)
    name = model_id or (Path(source).resolve().name if is_folder else source)
    handle = HookedModel(model, load_tokenizer(source), row, model_id=name)
    if verify:
        verify_model(handle)
    return handle


def _adapted(below: HookedModel, folder: Path, model_id: str | None, verify: bool) -> HookedModel:
    model = with_adapter(below.model, below.architecture, folder).eval().requires_grad_(False)
    own = any((folder / name).exists() for name in _TOKENIZER_FILES)
    tokenizer = load_tokenizer(folder) if own else below.tokenizer
    handle = HookedModel(model, tokenizer, below.architecture, model_id=model_id or folder.resolve().name)
    if verify:
        verify_model(handle)
    return handle


def load_classifier(path_or_name: str | Path, *, device: str | torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """A sequence classifier with one output, such as a reward or cost model, and its tokenizer.

    Raises:
        FileMissing: the folder, a file of it, or the hub name does not exist.
        UnsafeWeights: the folder holds pickle weights only.
        DamagedWeights: a file is damaged, or has no weights of the output, as a plain language model has none.
        UnknownArchitecture: the model has another number of outputs, or transformers does not classify with its type.
        DeviceUnavailable: the device is not there.
        BadSettings: the dtype is none of float32, bfloat16, float16.
    """
    _check_placement(device, dtype, None)
    source = str(Path(path_or_name).expanduser()) if Path(path_or_name).expanduser().exists() else str(path_or_name)
    if isinstance(path_or_name, Path) or Path(source).exists() or source.startswith((".", "/", "~")):
        _check_folder(Path(source))
    config = read_config(source)
    if config.num_labels != 1:
        raise UnknownArchitecture(f"{source}: a reward model has one output; this one has {config.num_labels}.")
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UnknownArchitecture(f"{source}: transformers has no sequence classifier of type `{config.model_type}`.")
    read = AutoModelForSequenceClassification.from_pretrained
    model, info = _from_pretrained(source, config, {"dtype": dtype}, read)
    _check_info(source, model, info)
    tokenizer = load_tokenizer(source)
    model.config.pad_token_id = tokenizer.pad_token_id  # by it the class finds each row's last token
    return model.to(device).eval().requires_grad_(False), tokenizer


def _from_pretrained(
    source: str, config: Any, options: dict[str, Any], read: Any = AutoModelForCausalLM.from_pretrained
) -> tuple[Any, dict[str, Any]]:
    try:
        model, info = read(
            source,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            # mismatched keys come back in the loading info, which `_check_info` refuses by name
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    except SafetensorError as error:
        raise DamagedWeights(f"{source}: a safetensors file is damaged ({error}); fetch it again.") from error
    except OSError as error:
        raise _hub_error(source, error) from error
    return model, info


def load_tokenizer(path_or_name: str | Path) -> Any:
    """The tokenizer of a folder or hub name; without a padding token it pads with its end-of-text token.

    Raises:
        FileMissing: there is no tokenizer.
        DamagedWeights: its file is not JSON.
    """
    source = str(path_or_name)
    if Path(source).is_dir() and not any((Path(source) / name).exists() for name in _TOKENIZER_FILES):
        raise FileMissing(
            f"{source}: expected a tokenizer ({', '.join(_TOKENIZER_FILES)}), found none; save it beside the weights."
        )
    if (Path(source) / "tokenizer.json").is_file():
        _read_object(Path(source) / "tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        raise _hub_error(source, error) from error
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_placement(device: str | torch.device | None, dtype: torch.dtype, device_map: Any) -> None:
    if dtype not in _DTYPES:
        raise BadSettings(f"dtype: expected one of {', '.join(map(str, _DTYPES))}; got {dtype}.")
    if (device is None) == (device_map is None):
        raise BadSettings(
            f"expected either a device or a device map; got device={device!r}, device_map={device_map!r}."
        )
    if device_map is not None and find_spec("accelerate") is None:
        raise BadSettings("a device map needs the package accelerate: pip install 'safe-sail[accelerate]'.")
    wanted = [device] if device is not None else []
    if isinstance(device_map, dict):
        wanted = [place if not isinstance(place, int) else f"cuda:{place}" for place in device_map.values()]
    for place in wanted:
        if place != "disk":
            check_device(place)


def check_device(device: str | torch.device) -> None:
    """Nothing, when this machine has the device.

    Raises:
        DeviceUnavailable: it lacks the device, or there is no device of that name.
    """
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise DeviceUnavailable(f"`{device}` is no device; expected cpu, cuda, cuda:0, mps.") from error
    if place.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (place.index or 0):
            raise DeviceUnavailable(
                f"`{device}` was asked for, this machine offers {count} CUDA devices to torch {torch.__version__}; "
                f"ask for `cpu`, or install a CUDA build of torch where there is a GPU."
            )
    elif place.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceUnavailable("`mps` was asked for, this machine has none; ask for `cpu`.")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise FileMissing(f"expected a model folder at {folder}; there is none. Give the folder of config.json.")
    if not (folder / "config.json").is_file():
        raise FileMissing(f"{folder}: expected config.json; there is none. Give the folder that save_pretrained wrote.")
    shards = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = [folder / name for name in _indexed(index)]
    if not shards:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise UnsafeWeights(
                f"{folder}: holds {pickles[0]} and no safetensors file. Such files can run code when they are read; "
                f"convert them with `save_pretrained(..., safe_serialization=True)` where you trust them."
            )
        raise FileMissing(f"{folder}: expected model.safetensors; there is none. Save or fetch the weights there.")
    for shard in shards:
        if not shard.is_file():
            raise FileMissing(f"{folder}: {index.name} names {shard.name}, which is not there; fetch it.")
        try:
            with safe_open(shard, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise DamagedWeights(
                f"{shard} is damaged ({error}); {shard.stat().st_size} bytes came. Fetch it again."
            ) from error


def _indexed(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedWeights(
            f"{index} is malformed ({error!r}); expected JSON with a `weight_map`. Fetch it again."
        ) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise DamagedWeights(f"{index}: {name!r} is not the name of a file in the folder; fetch the index again.")
    return names


def _read_object(path: Path) -> None:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedWeights(f"{path} is not JSON ({error}); fetch it again.") from error
    if not isinstance(fields, dict):
        raise DamagedWeights(f"{path}: expected a JSON object, got {type(fields).__name__}; fetch it again.")


def read_config(source: str) -> Any:
    """The configuration of a folder or hub name; no code of its repository runs.

    Raises:
        FileMissing: it is neither a folder here nor reachable as a hub name.
        DamagedWeights: the configuration does not hold together.
        UnknownArchitecture: transformers has no model of its type.
    """
    if Path(source).is_dir():
        _read_object(Path(source) / "config.json")
    else:
        require_hub(source)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        raise _hub_error(source, error) from error
    except StrictDataclassError as error:
        raise DamagedWeights(f"{source}/config.json does not hold together ({error}).") from error
    except (ValueError, KeyError) as error:
        if "trust_remote_code" not in str(error) and "model type" not in str(error) and "model_type" not in str(error):
            raise DamagedWeights(f"{source}/config.json does not hold together ({error}).") from error
        raise UnknownArchitecture(
            f"{source}: transformers has no model of this type without code from the repository, which never runs here "
            f"({str(error).splitlines()[0]})."
        ) from error


def _hub_error(source: str, error: OSError) -> FileMissing | UnsafeWeights:
    first = str(error).splitlines()[0]
    if "safetensors" in first:
        return UnsafeWeights(f"{source}: has no safetensors weights, and no other format is read ({first})")
    return FileMissing(f"{source}: neither a folder here nor reachable as a hub name ({first})")


def _check_info(source: str, model: Any, info: dict[str, Any]) -> None:
    missing = sorted(info["missing_keys"])
    mismatched = sorted(str(key) for key in info["mismatched_keys"])
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    unexpected = sorted(key for key in info["unexpected_keys"] if not key.endswith(_HARMLESS) and key not in tied)
    for found, what in (
        (missing, "the configuration needs weights that no file holds"),
        (mismatched, "weights have other shapes than the configuration says"),
        (unexpected, "files hold weights that the configuration has no place for"),
    ):
        if found:
            shown = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
            raise DamagedWeights(f"{source}: {what}: {shown}. config.json and the files are of different models.")
