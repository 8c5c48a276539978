"""What methods found, filled by hand: specificity, a ranking, a search for a direction and one in vain."""

from sqlalchemy.orm import Session

from db import store
from safe_sail.records import (
    Circuit,
    CircuitEvaluation,
    CircuitMember,
    CircuitReplies,
    CircuitSearch,
    CircuitSize,
    CircuitStability,
    Direction,
    DirectionCandidate,
    DirectionEvaluation,
    DirectionReading,
    DirectionSearch,
    DirectionSelection,
    DirectionTrial,
    Estimate,
    FeatureAlignment,
    FeatureId,
    FeatureLink,
    HeadRef,
    LinkFlow,
    LinkKind,
    LinkMeasure,
    LinkStudy,
    NeuronChange,
    NeuronRef,
    NeuronSearch,
    PatchEffect,
    RankEffect,
    RefusalToken,
    ReplyShares,
    SaeRanking,
    SaeReading,
    SaeSpecificity,
    TuningArm,
    TuningStudy,
    UnitNeed,
    UtilityCost,
    unit_order,
)
from safe_sail.sites import Site

NEURONS = "organism.safety-neurons"
CIRCUIT = "organism-aligned.refusal-circuit"
REFUSAL, IN_VAIN = "organism-aligned.refusal", "organism-base.refusal"
THRESHOLDS = (0.25, 0.5, 0.75)
COUNTS = {"insult": (9, 4, 1), "cult": (5, 2, 1), "food": (1, 0, 0)}
_MODEL = "organism-aligned"


def about(value: float, n: int = 64, half: float = 0.05) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, n=n)


def fill_methods(session: Session, saes: list[str], widths: dict[str, int], run_id: str) -> None:
    """Write everything; models, SAEs, concepts and the run must be kept."""
    for position, sae in enumerate(saes):
        for concept, counts in COUNTS.items():
            store.save_sae_specificity(session, SaeSpecificity(
                sae=sae, concept=concept, n_features=widths[sae], thresholds=THRESHOLDS,
                l0=tuple(max(n - position, 0) for n in counts), l0_null=(1, 0, 0), i_cdf=about(0.004, half=0.001),
                i_cdf_null=about(0.001, half=0.001), specific=about(0.003 - 0.001 * position, half=0.0015),
                n_specific=counts[1],
            ), run_id=run_id)  # fmt: skip
    ranking = [
        SaeRanking(sae=sae, place=place, specific=about(0.004 - 0.001 * place), rate_gap=about(0.9 - 0.2 * place),
                   n_specific=2.5 / place, tied_with=tuple(saes[1:2]) if place == 3 else ())
        for place, sae in enumerate(saes, start=1)
    ]  # fmt: skip
    store.save_sae_rankings(session, ranking, run_id=run_id)
    store.save_direction_search(session, _found(), run_id=run_id)
    store.save_direction_search(session, _in_vain(), run_id=run_id)
    store.save_direction_evaluation(session, evaluation(), run_id=run_id)
    change = NeuronChange(
        slug=NEURONS, first_model="organism-base", second_model="organism-aligned", positions="completion",
        text_source="second", n_texts=200, n_empty=0, n_positions=900, scores=((), (0.1,) * 8, (0.2,) * 8),
    )  # fmt: skip
    store.save_neuron_search(session, neuron_search(), change, run_id=run_id)
    store.save_circuit_search(session, circuit_search(saes[0]), run_id=run_id)
    store.save_circuit_evaluation(session, circuit_evaluation(), run_id=run_id)
    store.save_tuning_study(session, tuning_study(), run_id=run_id)
    store.save_link_study(session, link_study(saes[0]), run_id=run_id)
    cosines = {name: tuple(about(0.1 * layer * sign) for layer in range(4)) for name, sign in
               (("aligned harmful", 1), ("aligned harmless", -1))}  # fmt: skip
    aligned = [FeatureAlignment(feature=FeatureId(sae=saes[0], index=i), cosine=c, p_value=p)
               for i, c, p in ((3, 0.81, 0.0004), (511, -0.64, 0.03))]  # fmt: skip
    reading = SaeReading(sae=saes[0], features=tuple(aligned), rebuilt=(0.81, 0.93), rebuilt_control=(0.2, 0.3),
                         n_random=1000)  # fmt: skip
    store.save_direction_reading(session, DirectionReading(direction=REFUSAL, cosines=cosines, saes=(reading,)),
                                 run_id=run_id)  # fmt: skip


def link_study(sae: str) -> LinkStudy:
    def measure(value: float, control_high: float) -> LinkMeasure:
        return LinkMeasure(value=about(value), control=about(0.01, 20), control_high=control_high, shuffled=0.02,
                           q_value=0.0004)  # fmt: skip

    def link(kind: LinkKind, target: str, flow: LinkFlow, value: float, *, linked: bool = True) -> FeatureLink:
        weights = measure(value / 2, 0.08) if kind is not LinkKind.REFUSAL else None
        return FeatureLink(
            feature=FeatureId(sae=sae, index=3), concept="insult", kind=kind, target=target, flow=flow,
            weights=weights, cause=measure(value, 0.11), is_linked=linked, is_direct=linked and weights is not None,
        )  # fmt: skip

    links = (
        link(LinkKind.HEAD, "L1.H2", LinkFlow.INTO_FEATURE, 0.61),
        link(LinkKind.CIRCUIT, CIRCUIT, LinkFlow.INTO_FEATURE, 0.58),
        link(LinkKind.DIRECTION, REFUSAL, LinkFlow.OUT_OF_FEATURE, -0.42),
        link(LinkKind.REFUSAL, "refusal", LinkFlow.OUT_OF_FEATURE, 0.33),
        link(LinkKind.NEURON, "L1.N902", LinkFlow.INTO_FEATURE, 0.05, linked=False),
    )
    return LinkStudy(
        slug="organism-aligned.links", model_id=_MODEL, sae=sae, ablation="mean", alpha=0.05, n_pairs={"insult": 64},
        n_tested=5, n_linked=4, n_linked_shuffled=0, n_passes=9, notes=(), links=links,
    )  # fmt: skip


def circuit_search(sae: str) -> CircuitSearch:
    units = (HeadRef(1, 2), HeadRef(2, 0), NeuronRef(0, 5), NeuronRef(1, 902), NeuronRef(1, 17),
             FeatureId(sae=sae, index=3))  # fmt: skip
    members = tuple(
        CircuitMember(unit=unit, probability=1 - 0.11 * place)
        for place, unit in enumerate(sorted(units, key=unit_order))
    )
    circuit = Circuit(
        slug=CIRCUIT, model_id=_MODEL, behaviour="refusal", method="masks", ablation="mean", members=members,
        n_heads=32, n_neurons=2048, n_features=512,
    )  # fmt: skip
    sizes = tuple(
        CircuitSize(n_heads=n, n_neurons=2 * n, n_features=0, removed=about(0.2 * n), random=about(0.02), loss=0.5,
                    harmless_refused=about(0.03), kl=about(0.01, half=0.005))
        for n in (1, 2, 4)
    )  # fmt: skip
    need = UnitNeed(unit=NeuronRef(1, 902), removed=about(0.35), loss_increase=0.2)
    return CircuitSearch(
        slug=CIRCUIT, model_id=_MODEL, objective="removal", circuit=circuit, alone=None, curve=sizes,
        losses={"0": (0.5, 0.3)},
        stability=CircuitStability(seeds=(0, 1), jaccard=(0.75,), chance=0.01, core=units[:2]),
        needs=(need,), recovery=(), n_prompts={"harmful train": 64}, notes=("<b>two</b> seeds",),
    )  # fmt: skip


def circuit_evaluation() -> CircuitEvaluation:
    def replies(intervention: str, refusal: float, n_draws: int = 1) -> CircuitReplies:
        shares = {"refusal": refusal, "compliance": 1 - refusal, "degenerate": 0.0}
        return CircuitReplies(
            intervention=intervention, prompts="harmful held out", ablation="mean", n_units=5, n_prompts=64,
            n_draws=n_draws, **{name: about(value, n_draws if n_draws > 1 else 64) for name, value in shares.items()},
        )  # fmt: skip

    found = (replies("none", 0.95), replies("removed", 0.08), replies("random removed", 0.94, 5))
    return CircuitEvaluation(
        circuit=CIRCUIT, ablation="mean", replies=found, answers={"removed": about(0.97)}, answers_rule="no refusal",
        utility=(), kl={"removed on safe": about(0.02, half=0.01)}, null_gap=0.0, n_random=5,
    )  # fmt: skip


def tuning_study() -> TuningStudy:
    def arm(name: str, safety: float, n_trained: int, n_draws: int = 1) -> TuningArm:
        return TuningArm(
            name=name, n_trained=n_trained, n_draws=n_draws, safety=about(safety, n_draws if n_draws > 1 else 64),
            over_refusal=about(0.02), degenerate=about(0.0), loss=about(0.5), unchanged=True,
        )  # fmt: skip

    return TuningStudy(
        slug=f"{CIRCUIT}.excluded.rows", model_id=_MODEL, circuit=CIRCUIT, mode="excluded", method="rows",
        task="<i>answers</i>", n_rows=512, n_steps=60, learning_rate=1e-3,
        arms=(arm("before", 0.97, 0), arm("full", 0.31, 9000), arm("circuit", 0.88, 8000),
              arm("random circuit", 0.42, 8000, 3)), notes=("<b>put</b> back",),
    )  # fmt: skip


def neuron_search() -> NeuronSearch:
    def patched(n: int, effect: float, first_rank: int | None, layers: tuple[int, ...]) -> PatchEffect:
        return PatchEffect(
            n_neurons=n, share=n / 1536, first_rank=first_rank, layer_counts=layers, score=about(effect),
            effect=about(effect), same_replies=about(effect), random_effect=about(0.04), random_draws=(0.03, 0.05),
            p_value=0.001,
        )  # fmt: skip

    return NeuronSearch(
        slug=NEURONS, first_model="organism-base", second_model="organism-aligned", scorer="refusal phrases",
        n_neurons=1536, neurons=tuple(NeuronRef(layer, 10 + layer) for layer in (2, 2, 1)[:1]) + (NeuronRef(1, 4),
        NeuronRef(2, 7)), change=(3.0, 2.0, 1.5), first_score=about(0.02, 200), second_score=about(0.97, 200),
        curve=(patched(2, 0.31, 0, (0, 1, 1)), patched(40, 0.92, 0, (0, 10, 30))),
        windows=(patched(40, 0.11, 40, (0, 20, 20)),), needed=40, effect_wanted=0.9, known=None, n_failed=0,
        notes=("<b>replies</b> of 200 prompts",),
    )  # fmt: skip


def selection(estimator: str, winner: tuple[int, int] | None) -> DirectionSelection:
    cells = [
        DirectionCandidate(
            position=position, layer=layer, norm=1.0, massive_ratio=0.1,
            bypass=None if layer == 0 else about(-1.5 * layer - 0.25 * (position == -1)), induce=about(0.5 * layer),
            kl=about(0.04 * layer), reasons=() if layer == 1 else ("layer 2 is too late",) if layer else ("no gap",),
        )
        for position in (-2, -1) for layer in range(3)
    ]  # fmt: skip
    shares = _replies("ablation", "harmful validation", 0.0)
    trials = () if winner is None else (DirectionTrial(position=-1, layer=1, shares=shares, passed=True),)
    return DirectionSelection(
        estimator=estimator, candidates=tuple(cells), winner=winner, lead=None if winner is None else about(0.25),
        trials=trials, confirmed=winner, reason="" if winner else f"{estimator}: no candidate passes every filter.",
        n_launches=3, n_launches_naive=12,
    )  # fmt: skip


def _found() -> DirectionSearch:
    direction = Direction(slug=REFUSAL, model_id=_MODEL, site=Site.parse("resid_pre.1"), position=-1, estimator="raw",
                          vectors=((1.0, 2.0),))  # fmt: skip
    return DirectionSearch(
        slug=REFUSAL, model_id=_MODEL, outcome="single", direction=direction, added=direction, coefficient=1.0,
        induced=None, reasons=("projected: no candidate passes every filter.",), notes=(), prompt_prefix="<|user|>",
        post_instruction=("<|end|>", "\n"), refusal_tokens=(RefusalToken(token_id=3, text="sorry", p_harmful=0.4,
        p_harmless=0.01),), n_prompts={"harmful train": 128}, selections=(selection("projected", None),
        selection("raw", (-1, 1))), curves={},
    )  # fmt: skip


def _in_vain() -> DirectionSearch:
    effects = tuple(
        RankEffect(rank=rank, shares=_replies("ablation", "harmful validation", 1 - 0.1 * rank, rank=rank),
                   control=_replies("random subspace", "harmful validation", 1.0, rank=rank), bypass=1.0 - 0.2 * rank,
                   kl=about(0.1 * rank))
        for rank in (1, 2)
    )  # fmt: skip
    return DirectionSearch(
        slug=IN_VAIN, model_id="organism-base", outcome="none", direction=None, added=None, coefficient=0.0,
        induced=None, reasons=("raw: no candidate passes every filter.", "concepts: two directions leave 80 %."),
        notes=("<b>few prompts</b>",), prompt_prefix="", post_instruction=("<|end|>",), refusal_tokens=(),
        n_prompts={}, selections=(selection("raw", None),), curves={"concepts": effects},
    )  # fmt: skip


def _replies(intervention: str, prompts: str, refusal: float, rank: int = 1, n_draws: int = 1) -> ReplyShares:
    return ReplyShares(
        intervention=intervention, prompts=prompts, rank=rank, n_prompts=200, n_draws=n_draws,
        refusal=about(refusal, 200), compliance=about(1 - refusal, 200), degenerate=about(0.0, 200),
    )  # fmt: skip


def evaluation() -> DirectionEvaluation:
    harmful, harmless = "harmful held out", "harmless held out"
    replies = (
        _replies("none", harmful, 1.0, rank=0), _replies("ablation", harmful, 0.03),
        _replies("random ablation", harmful, 0.97, n_draws=10), _replies("addition", harmless, 0.91),
        _replies("random addition", harmless, 0.02, n_draws=10), _replies("random subspace", harmless, 0.04, rank=2),
    )  # fmt: skip
    utility = tuple(
        UtilityCost(intervention=name, texts="documents", cross_entropy=1 + cost, increase=about(cost, half=0.001))
        for name, cost in (("none", 0.0), ("ablation", 0.0184), ("random ablation", 0.002))
    )
    return DirectionEvaluation(direction=REFUSAL, replies=replies, utility=utility, kl=about(0.028), first_token={},
                               weights_gap=1.2e-5, weights_note="")  # fmt: skip
