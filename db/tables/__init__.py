"""The tables: one class a table, no logic. `db/store` turns records into their rows and back.

Every row carries the run that wrote it. An `Estimate` called `x` is five columns: x, x_low, x_high, x_n, x_level.
A row of `feature` exists as soon as anything is known of a feature; its numbers are NULL until contexts are collected.
"""

from db.tables.base import DESCENDING_INDEXES, Base, FloatArray, IntArray, UtcDateTime
from db.tables.circuits import CircuitEvaluationRow, CircuitMemberRow, CircuitRow, CircuitSearchRow
from db.tables.directions import DirectionEvaluationRow, DirectionReadingRow, DirectionRow, DirectionSearchRow
from db.tables.features import ContextsRow, ExplanationRow, ExplanationScoreRow, FeatureRow
from db.tables.interventions import InterventionScoreRow
from db.tables.jobs import JobEventRow, JobRow
from db.tables.keys import ApiKeyRow
from db.tables.ledger import LedgerRow
from db.tables.links import FeatureLinkRow, LinkStudyRow
from db.tables.listing import FeatureListingRow
from db.tables.neurons import GuardRow, NeuronSearchRow, NeuronTaxRow
from db.tables.published import FeatureTagRow, PublishedScoreRow
from db.tables.samples import ContextSampleRow
from db.tables.scoring import (
    ConceptScoreRow,
    SaeFactsRow,
    SaeRankingRow,
    SaeScoreRow,
    SaeSpecificityRow,
)
from db.tables.subjects import ConceptRow, ModelRow, RunRow, SaeRow
from db.tables.tuning import TuningStudyRow

__all__ = [
    "DESCENDING_INDEXES",
    "ApiKeyRow",
    "Base",
    "CircuitEvaluationRow",
    "CircuitMemberRow",
    "CircuitRow",
    "CircuitSearchRow",
    "ConceptRow",
    "ConceptScoreRow",
    "ContextSampleRow",
    "ContextsRow",
    "DirectionEvaluationRow",
    "DirectionReadingRow",
    "DirectionRow",
    "DirectionSearchRow",
    "ExplanationRow",
    "ExplanationScoreRow",
    "FeatureLinkRow",
    "FeatureListingRow",
    "FeatureRow",
    "FeatureTagRow",
    "FloatArray",
    "GuardRow",
    "IntArray",
    "InterventionScoreRow",
    "JobEventRow",
    "JobRow",
    "LedgerRow",
    "LinkStudyRow",
    "ModelRow",
    "NeuronSearchRow",
    "NeuronTaxRow",
    "PublishedScoreRow",
    "RunRow",
    "SaeFactsRow",
    "SaeRankingRow",
    "SaeRow",
    "SaeScoreRow",
    "SaeSpecificityRow",
    "TuningStudyRow",
    "UtcDateTime",
]
