"""Safety circuits: heads, neurons and SAE features that carry a behaviour, found by differentiable masks.

`masks` and `baselines` say what a circuit is at the model; `gates` how membership is learnt; `objectives` what for;
`learn` and `refine` search, `search` puts seeds side by side, `ranking` is the baseline, `evaluate` judges.
"""
