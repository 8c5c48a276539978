"""`safe-sail trace-prompt`, `steer-prompt` and a guard that is asked: what they print is what the library finds."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from db.engine import make_engine
from db.migrate import upgrade
from db.store.whole import from_json, to_json
from safe_sail.errors import BadSettings, GuardUnfit
from safe_sail.model.load import load_model
from safe_sail.neurons.guard import REFUSAL_TEXT, Guard, save_guard
from safe_sail.neurons.probe import Probe
from safe_sail.neurons.readers import NeuronReader
from safe_sail.organism.grammar import prompts
from safe_sail.organism.load import organism_path
from safe_sail.records import GuardVerdict, PromptComparison, PromptTrace, Steering
from safe_sail.settings.live import GuardPromptJob, TracePromptJob
from scripts.job_runs import AsGiven, JobContext
from scripts.live import answer
from scripts.main import app

SAE = "organism.resid_post.3.topk4-1024"
HARMFUL = prompts("harmful", "held_out", 1, 0)[0].text


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'live.db'}"


def printed(*words: str) -> str:
    found = CliRunner().invoke(app, list(words))
    assert found.exit_code == 0, found.output
    return found.stdout


def test_a_trace_is_printed_for_people_and_for_programs(database: str):
    words = ["trace-prompt", HARMFUL, "--sae", SAE, "--max-new-tokens", "12", "--database", database]
    found = from_json(PromptTrace, printed(*words, "--json"))
    assert [layer.sae for layer in found.layers] == [SAE]
    assert found.text.reply is not None
    text = printed(*words)
    assert f"{found.text.reply.label}: {found.text.reply.text.strip()}" in text
    first = found.layers[0].strongest[0]
    assert f"#{first.index} up to {first.activations[first.peak]:.2f}" in text
    assert "(answer)" in text


def test_two_prompts_are_compared_on_the_command_line(database: str):
    words = ["trace-prompt", HARMFUL, "--against", f"{HARMFUL} please.", "--by-token", "--sae", SAE]
    words += ["--max-new-tokens", "0", "--database", database]
    found = from_json(PromptComparison, printed(*words, "--json"))
    assert len(found.pairs) == len(found.first.token_ids)
    assert f"#{found.layers[0].features[0].index} " in printed(*words)


def test_an_answer_is_steered_on_the_command_line(database: str):
    words = ["steer-prompt", HARMFUL, "--sae", SAE, "--feature", "7", "--coefficient", "3", "--unit", "activation"]
    words += ["--max-new-tokens", "8", "--database", database]
    found = from_json(Steering, printed(*words, "--json"))
    assert (found.target, found.coefficient) == (f"{SAE}/7", 3.0)
    assert f"plain    {found.plain.label}: {found.plain.text.strip()}" in printed(*words)


def test_a_guard_is_asked_and_refuses_from_its_threshold_on(database: str, tmp_path: Path):
    handle = load_model(organism_path("base"), device="cpu", dtype=torch.float32, model_id="organism-base")
    neurons = torch.tensor([[1, 4], [3, 100], [3, 7]])
    probe = Probe(
        torch.tensor([0.1, 0.0, -0.2]).double(), torch.ones(3).double(), torch.tensor([2.0, -1.0, 0.5]).double(), 0.3
    )
    # by hand: the inputs of transformers' own down projections at the last token
    read: dict[int, torch.Tensor] = {}
    layers = handle.model.model.layers
    hooks = [
        layers[layer].mlp.down_proj.register_forward_pre_hook(
            lambda _module, args, layer=layer: read.update({layer: args[0][0, -1]})
        )
        for layer in (1, 3)
    ]
    with torch.no_grad():
        handle.model(input_ids=handle.chat_batch([HARMFUL]).token_ids)
    for hook in hooks:
        hook.remove()
    values = torch.stack([read[layer][index] for layer, index in neurons.tolist()]).double()
    expected = float(((values - probe.mean) @ probe.weight + probe.bias).sigmoid())
    engine = make_engine(database)
    upgrade(engine)
    context = JobContext(engine=engine, offers=AsGiven("organism-base"), work=tmp_path)
    for name, threshold in (("strict", expected - 0.01), ("lax", expected + 0.01)):
        guard = Guard(
            model_id="organism-base", features="safety neurons", reader=NeuronReader(neurons), probe=probe,
            threshold=threshold,
        )  # fmt: skip
        save_guard(guard, tmp_path / name)
        told = GuardPromptJob(prompt=HARMFUL, guard=str(tmp_path / name), max_new_tokens=6)
        verdict = answer(told, context)
        assert isinstance(verdict, GuardVerdict)
        assert verdict.probability == pytest.approx(expected, abs=1e-5)
        assert verdict.refused == (name == "strict")
        assert (verdict.reply.text == REFUSAL_TEXT) == verdict.refused
        assert from_json(GuardVerdict, to_json(verdict)) == verdict
    with pytest.raises(GuardUnfit, match=r"guard\.json"):
        answer(GuardPromptJob(prompt="a", guard=str(tmp_path)), context)
    engine.dispose()


def test_what_contradicts_itself_is_refused():
    with pytest.raises(BadSettings, match="a plain text has none"):
        TracePromptJob(prompt="a", plain=True, system="b")
