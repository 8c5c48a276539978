"""Records to rows and back: the only place where the two meet.

- `saving`: `save_*`, each idempotent: the same key again replaces what was there, and the row names the newer run.
- `loading`: `load_*`, and `features_done` for resuming.
- `directions`: both for refusal directions, whose records are read whole.
- `neurons`: both for safety neurons, comparisons of two aims, and guards, whose records are read whole.
- `landscape`: what features carry each concept.
- `circuits`: both for safety circuits, by unit, and their searches and evaluations, whole.
- `rankings`: both for specificity of SAEs and rankings of runs, whose records are read whole.
- `links`: studies of what features have to do with heads, neurons, circuits and directions.
- `tuning`: both for studies that tune a model with a circuit.
- `ledger`: what asking language models cost and how it ended, by run.
- `samples`: both for what features do on texts that they did not choose.
- `interventions`: both for what changing features does, whole.
- `published`: scores without n and tags that others published.
- `listing`, `feature_listing`: what the service shows in tables: `list_models`, `list_saes`, `list_features`.
- `one_feature`: everything that is known of one feature.

All take a session of `db.engine.reading` or `db.engine.writing`; none commits.
"""

from db.store.circuits import (
    list_circuits,
    load_circuit,
    load_circuit_evaluations,
    load_circuit_search,
    save_circuit,
    save_circuit_evaluation,
    save_circuit_search,
)
from db.store.directions import (
    list_direction_searches,
    load_direction,
    load_direction_evaluation,
    load_direction_reading,
    load_direction_search,
    save_direction_evaluation,
    save_direction_reading,
    save_direction_search,
)
from db.store.feature_filter import EVERYTHING, INDEXED_SORTS, FeatureFilter, FeatureSort
from db.store.feature_listing import (
    FeatureListing,
    FeaturePage,
    PageRows,
    list_features,
    load_feature_listings,
    page_rows,
)
from db.store.interventions import load_intervention_scores, save_intervention_scores
from db.store.landscape import ConceptLandscape, FeatureGaps, list_feature_gaps, list_landscape, load_gaps
from db.store.ledger import LedgerTotal, features_failed, ledger_totals, load_ledger, save_ledger_entries
from db.store.links import (
    KeptLink,
    LinkStudyListing,
    links_of_feature,
    links_of_target,
    list_link_studies,
    load_link_study,
    save_link_study,
)
from db.store.listing import SaeListing, list_models, list_saes
from db.store.loading import (
    Explained,
    FeatureKind,
    Kept,
    features_done,
    list_concepts,
    list_runs,
    load_concept_scores,
    load_explanation_scores,
    load_explanations,
    load_model,
    load_run,
    load_sae,
    load_sae_facts,
    load_sae_scores,
    load_top_contexts,
)
from db.store.neurons import (
    list_guard_evaluations,
    list_neuron_searches,
    list_neuron_taxes,
    load_guard_evaluation,
    load_neuron_change,
    load_neuron_search,
    load_neuron_tax,
    save_guard_evaluation,
    save_neuron_search,
    save_neuron_tax,
)
from db.store.one_feature import FeatureBundle, FeatureRows, bundle_of, feature_rows, load_feature, rows_of_features
from db.store.published import (
    list_tags,
    load_feature_tags,
    load_published_of,
    load_published_scores,
    save_feature_tags,
    save_published_scores,
)
from db.store.rankings import (
    list_sae_rankings,
    load_sae_rankings,
    load_sae_specificity,
    save_sae_rankings,
    save_sae_specificity,
)
from db.store.samples import load_context_sample, save_context_samples
from db.store.saving import (
    finish_run,
    save_concept_scores,
    save_concepts,
    save_explanation_scores,
    save_explanations,
    save_model,
    save_run,
    save_sae,
    save_sae_facts,
    save_sae_scores,
    save_top_contexts,
)
from db.store.scales import load_scales
from db.store.tuning import list_tuning_studies, load_tuning_study, save_tuning_study

__all__ = [
    "EVERYTHING",
    "INDEXED_SORTS",
    "ConceptLandscape",
    "Explained",
    "FeatureBundle",
    "FeatureFilter",
    "FeatureGaps",
    "FeatureKind",
    "FeatureListing",
    "FeaturePage",
    "FeatureRows",
    "FeatureSort",
    "Kept",
    "KeptLink",
    "LedgerTotal",
    "LinkStudyListing",
    "PageRows",
    "SaeListing",
    "bundle_of",
    "feature_rows",
    "features_done",
    "features_failed",
    "finish_run",
    "ledger_totals",
    "links_of_feature",
    "links_of_target",
    "list_circuits",
    "list_concepts",
    "list_direction_searches",
    "list_feature_gaps",
    "list_features",
    "list_guard_evaluations",
    "list_landscape",
    "list_link_studies",
    "list_models",
    "list_neuron_searches",
    "list_neuron_taxes",
    "list_runs",
    "list_sae_rankings",
    "list_saes",
    "list_tags",
    "list_tuning_studies",
    "load_circuit",
    "load_circuit_evaluations",
    "load_circuit_search",
    "load_concept_scores",
    "load_context_sample",
    "load_direction",
    "load_direction_evaluation",
    "load_direction_reading",
    "load_direction_search",
    "load_explanation_scores",
    "load_explanations",
    "load_feature",
    "load_feature_listings",
    "load_feature_tags",
    "load_gaps",
    "load_guard_evaluation",
    "load_intervention_scores",
    "load_ledger",
    "load_link_study",
    "load_model",
    "load_neuron_change",
    "load_neuron_search",
    "load_neuron_tax",
    "load_published_of",
    "load_published_scores",
    "load_run",
    "load_sae",
    "load_sae_facts",
    "load_sae_rankings",
    "load_sae_scores",
    "load_sae_specificity",
    "load_scales",
    "load_top_contexts",
    "load_tuning_study",
    "page_rows",
    "rows_of_features",
    "save_circuit",
    "save_circuit_evaluation",
    "save_circuit_search",
    "save_concept_scores",
    "save_concepts",
    "save_context_samples",
    "save_direction_evaluation",
    "save_direction_reading",
    "save_direction_search",
    "save_explanation_scores",
    "save_explanations",
    "save_feature_tags",
    "save_guard_evaluation",
    "save_intervention_scores",
    "save_ledger_entries",
    "save_link_study",
    "save_model",
    "save_neuron_search",
    "save_neuron_tax",
    "save_published_scores",
    "save_run",
    "save_sae",
    "save_sae_facts",
    "save_sae_rankings",
    "save_sae_scores",
    "save_sae_specificity",
    "save_top_contexts",
    "save_tuning_study",
]
