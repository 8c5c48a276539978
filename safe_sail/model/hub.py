"""Whether a model's name can be looked up on the hub at all, asked before anything that would wait for it."""

import httpx2
from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode, try_to_load_from_cache

from safe_sail.errors import FileMissing


def require_hub(source: str) -> None:
    """Ends at once where the hub would have to be asked and does not answer: the hub's client tries for half a minute.

    Raises:
        FileMissing: nothing of that name is on this machine, and the hub cannot be reached.
    """
    try:
        if is_offline_mode() or isinstance(try_to_load_from_cache(source, "config.json"), str):
            return
        get_hf_file_metadata(hf_hub_url(source, "config.json"))
    except httpx2.TransportError as error:
        raise FileMissing(
            f"{source}: there is no such folder here, and as a hub name it cannot be looked up, since the hub does not "
            f"answer ({error}). Give a folder, or try again with a connection."
        ) from error
    except (OSError, ValueError):  # the hub or its client refuse the name; what follows says so in their words
        return
