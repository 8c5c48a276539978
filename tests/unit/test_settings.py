"""Settings refuse values outside their range and name the field."""

import json
from dataclasses import asdict

import pytest

from safe_sail.errors import BadSettings
from safe_sail.settings import ContextSettings, DemoSettings, LexicalSettings, ScoreSettings


def test_defaults_are_valid_and_become_json():
    assert json.loads(json.dumps(asdict(DemoSettings())))["score"]["n_judge"] == ScoreSettings().n_judge


def test_settings_refuse_values_that_leave_nothing_to_measure():
    with pytest.raises(BadSettings, match="n_judge must be at least 2; got 1"):
        ScoreSettings(n_judge=1)
    with pytest.raises(BadSettings, match="n_contexts"):
        ContextSettings(n_contexts=0)
    with pytest.raises(BadSettings, match="judged_share"):
        LexicalSettings(judged_share=1.0)
