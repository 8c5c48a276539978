"""Every result that leaves the library: frozen, keyword-only, validated, without torch.

A record is what a paper's table would hold: it can be stored, served and compared without the model that made it.
Numbers that were estimated are an `Estimate`: they carry their n and their interval.
"""

from safe_sail.records.basics import Estimate, RunInfo
from safe_sail.records.circuits import (
    ABLATIONS,
    Circuit,
    CircuitEvaluation,
    CircuitMember,
    CircuitRecovery,
    CircuitReplies,
    CircuitSearch,
    CircuitSize,
    CircuitStability,
    CircuitUnit,
    UnitNeed,
    unit_order,
)
from safe_sail.records.directions import (
    Direction,
    DirectionCandidate,
    DirectionEvaluation,
    DirectionReading,
    DirectionSearch,
    DirectionSelection,
    DirectionTrial,
    FeatureAlignment,
    HeadAttribution,
    RankEffect,
    RefusalToken,
    ReplyShares,
    SaeReading,
    SuffixStudy,
    UtilityCost,
)
from safe_sail.records.features import Context, Explanation, ExplanationScore, Histogram, JudgeMethod, TopContexts
from safe_sail.records.ledger import LEDGER_TEXT_LIMIT, LedgerEntry, Stage
from safe_sail.records.links import FeatureLink, LinkFlow, LinkKind, LinkMeasure, LinkStudy
from safe_sail.records.published import FeatureTags, PublishedScore
from safe_sail.records.scoring import ConceptScore, SaeFacts, SaeRanking, SaeScore, SaeSpecificity, highest_first
from safe_sail.records.subjects import Concept, FeatureId, ModelRef, SaeRef
from safe_sail.records.units import HeadRef, NeuronRef, UnitRef, parse_unit

__all__ = [
    "ABLATIONS",
    "LEDGER_TEXT_LIMIT",
    "Circuit",
    "CircuitEvaluation",
    "CircuitMember",
    "CircuitRecovery",
    "CircuitReplies",
    "CircuitSearch",
    "CircuitSize",
    "CircuitStability",
    "CircuitUnit",
    "Concept",
    "ConceptScore",
    "Context",
    "Direction",
    "DirectionCandidate",
    "DirectionEvaluation",
    "DirectionReading",
    "DirectionSearch",
    "DirectionSelection",
    "DirectionTrial",
    "Estimate",
    "Explanation",
    "ExplanationScore",
    "FeatureAlignment",
    "FeatureId",
    "FeatureLink",
    "FeatureTags",
    "HeadAttribution",
    "HeadRef",
    "Histogram",
    "JudgeMethod",
    "LedgerEntry",
    "LinkFlow",
    "LinkKind",
    "LinkMeasure",
    "LinkStudy",
    "ModelRef",
    "NeuronRef",
    "PublishedScore",
    "RankEffect",
    "RefusalToken",
    "ReplyShares",
    "RunInfo",
    "SaeFacts",
    "SaeRanking",
    "SaeReading",
    "SaeRef",
    "SaeScore",
    "SaeSpecificity",
    "Stage",
    "SuffixStudy",
    "TopContexts",
    "UnitNeed",
    "UnitRef",
    "UtilityCost",
    "highest_first",
    "parse_unit",
    "unit_order",
]
