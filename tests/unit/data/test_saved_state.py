"""A folder's state survives what happens to its writer."""

import json
from pathlib import Path

import pytest
import torch

from safe_sail.data.saved_state import load_state, save_state
from safe_sail.errors import BadInput


def test_the_last_state_comes_back_and_older_files_go(tmp_path: Path):
    folder = tmp_path / "deep" / "state"
    assert load_state(folder) is None
    for step in range(3):
        save_state(folder, {"x": torch.full((2,), step)}, {"step": step})
    found = load_state(folder)
    assert found is not None
    assert found.info == {"step": 2}
    assert torch.equal(found.tensors["x"], torch.full((2,), 2))
    assert len(list(folder.iterdir())) == 2


def test_a_writer_killed_between_its_steps_leaves_the_state_before(tmp_path: Path):
    save_state(tmp_path, {"x": torch.zeros(1)}, {"step": 0})
    # what a writer leaves that was killed after it wrote the tensors, and half of the index
    (tmp_path / "state-2.safetensors").write_bytes(b"half of it")
    (tmp_path / "state.json.new").write_text('{"tensors": "st')
    found = load_state(tmp_path)
    assert found is not None
    assert found.info == {"step": 0}
    save_state(tmp_path, {"x": torch.ones(1)}, {"step": 1})
    found = load_state(tmp_path)
    assert found is not None
    assert torch.equal(found.tensors["x"], torch.ones(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-2.safetensors", "state.json"]


def test_states_that_cannot_be_read_or_written_say_so(tmp_path: Path):
    save_state(tmp_path, {"x": torch.zeros(1)}, {})
    (tmp_path / "state-1.safetensors").write_bytes(b"damaged")
    with pytest.raises(BadInput, match="cannot be read"):
        load_state(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({"info": {}}))
    with pytest.raises(BadInput, match="cannot be read"):
        load_state(tmp_path)
    with pytest.raises(BadInput, match="cannot be written"):
        save_state(tmp_path / "state.json" / "below", {"x": torch.zeros(1)}, {})
