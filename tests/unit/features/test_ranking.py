"""Rankings: order, ties, and intervals against a loop and a closed form."""

import pytest
import torch

from safe_sail.errors import BadInput
from safe_sail.features.ranking import ConceptEvidence, rank_saes


def evidence(sae: str, mean: float, *, concept: str = "c", n: int = 50, seed: int = 0, paired: bool = True):
    """Pairs around a mean with a spread of 0.02; texts on which the best feature fires as often as the mean says."""
    generator = torch.Generator().manual_seed(seed)
    spread = 0.02 * torch.randn(n, generator=generator, dtype=torch.float64)
    fires = (torch.rand(n, generator=generator) < 5 * mean).double()
    return ConceptEvidence(sae, concept, mean + spread if paired else None, fires, 0 * fires, 2 if paired else None)


def ranked(*found: ConceptEvidence, n: int = 2000):
    return rank_saes(found, n_bootstrap=n, generator=torch.Generator().manual_seed(1))


def test_saes_come_best_first_and_say_which_cannot_be_told_apart():
    found = ranked(evidence("near", 0.1001, seed=1), evidence("far", 0.02, seed=2), evidence("best", 0.101, seed=3))
    assert [one.place for one in found] == [1, 2, 3]
    assert found[2].sae == "far"
    assert {one.sae: one.tied_with for one in found} == {"near": ("best",), "best": ("near",), "far": ()}
    assert found[0].n_specific == 2


def test_a_difference_that_every_pair_shows_is_no_tie_however_wide_the_intervals():
    one = evidence("one", 0.1)
    assert one.per_pair is not None
    other = one._replace(sae="other", per_pair=one.per_pair + 0.001)
    first, second = ranked(one, other)
    assert first.sae == "other"
    assert first.tied_with == second.tied_with == ()
    assert first.specific is not None
    assert second.specific is not None
    assert second.specific.high > first.specific.value


def test_equal_saes_are_tied_in_the_order_of_their_slugs():
    one = evidence("b", 0.1)
    first, second = ranked(one, one._replace(sae="a"))
    assert (first.sae, first.tied_with, second.tied_with) == ("a", ("b",), ("a",))


def test_without_pairs_the_rate_gap_ranks():
    low, high = evidence("a", 0.05, paired=False, seed=4), evidence("b", 0.19, paired=False, seed=5)
    first, second = ranked(low, high)
    assert (first.sae, second.sae) == ("b", "a")
    assert first.specific is None
    assert first.n_specific is None
    assert first.rate_gap.value == pytest.approx(float(high.fires_positive.mean()))


def test_interval_over_pairs_matches_the_standard_error():
    one = evidence("one", 0.1, n=400)
    assert one.per_pair is not None
    (found,) = ranked(one, n=4000)
    assert found.specific is not None
    error = one.per_pair.std().item() / 20
    # ends of a percentile interval from 4,000 draws scatter by about 4 % of the standard error
    assert found.specific.low == pytest.approx(found.specific.value - 1.96 * error, abs=0.2 * error)
    assert found.specific.high == pytest.approx(found.specific.value + 1.96 * error, abs=0.2 * error)


def test_interval_over_concepts_and_pairs_equals_a_loop():
    saes = {"a": 0.1, "b": 0.12}
    parts = [evidence(s, m + 0.03 * c, concept=str(c), n=5 + c, seed=c) for s, m in saes.items() for c in range(3)]
    found = {one.sae: one for one in ranked(*parts, n=60)}
    generator = torch.Generator().manual_seed(1)
    # the rate gap is drawn first: positive then negative texts of each concept, then the concepts
    for c in range(3):
        for _ in range(2):
            torch.randint(5 + c, (60, 5 + c), generator=generator)
    torch.randint(3, (60, 3), generator=generator)
    rows = [torch.randint(5 + c, (60, 5 + c), generator=generator) for c in range(3)]
    concepts = torch.randint(3, (60, 3), generator=generator)
    for sae in saes:
        values = {one.concept: one.per_pair for one in parts if one.sae == sae}
        draws = []
        for r in range(60):
            means = [values[str(c)][rows[c][r]].mean() for c in concepts[r].tolist()]
            draws.append(sum(means) / 3)
        low, high = torch.stack(draws).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
        assert found[sae].specific.low == pytest.approx(low.item())
        assert found[sae].specific.high == pytest.approx(high.item())
        assert found[sae].specific.n == 3


def test_evidence_from_other_texts_or_with_holes_is_refused():
    with pytest.raises(BadInput, match="same texts"):
        ranked(evidence("a", 0.1, n=50), evidence("b", 0.1, n=51))
    with pytest.raises(BadInput, match="every SAE on every concept"):
        ranked(evidence("a", 0.1), evidence("b", 0.1, concept="d"))
    with pytest.raises(BadInput, match="every SAE on every concept"):
        ranked()
