"""A name that is neither a folder nor known to a hub that answers is refused after one question."""

import socket
import threading
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from safe_sail.errors import FileMissing
from safe_sail.model import hub
from safe_sail.model.load import load_model


def test_a_hub_that_hangs_up_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[bytes] = []

    def hang_up(door: socket.socket) -> None:
        while True:
            line, _ = door.accept()
            with line:
                said = line.recv(65536)
            if not said:
                return
            asked.append(said)

    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=hang_up, args=(door,))
        thread.start()
        address = door.getsockname()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        endpoint = f"http://127.0.0.1:{address[1]}"
        monkeypatch.setattr(hub, "hf_hub_url", partial(huggingface_hub.hf_hub_url, endpoint=endpoint))
        try:
            with pytest.raises(FileMissing, match=r"nobody/nothing: there is no such folder here, .* does not answer"):
                load_model("nobody/nothing", device="cpu", dtype=torch.float32)
        finally:
            socket.create_connection(address).close()  # says nothing: the end
            thread.join()
    assert [said.split()[:2] for said in asked] == [[b"HEAD", b"/nobody/nothing/resolve/main/config.json"]]
