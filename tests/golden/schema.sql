CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL,
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

CREATE TABLE api_key (
	prefix TEXT NOT NULL,
	secret_sha256 TEXT NOT NULL,
	name TEXT NOT NULL,
	scope TEXT NOT NULL,
	created DATETIME NOT NULL,
	revoked DATETIME,
	CONSTRAINT pk_api_key PRIMARY KEY (prefix)
);

CREATE TABLE circuit (
	slug TEXT NOT NULL,
	model_id TEXT NOT NULL,
	behaviour TEXT NOT NULL,
	method TEXT NOT NULL,
	ablation TEXT NOT NULL,
	n_heads BIGINT NOT NULL,
	n_neurons BIGINT NOT NULL,
	n_features BIGINT NOT NULL,
	run_id TEXT NOT NULL, start_model TEXT,
	CONSTRAINT pk_circuit PRIMARY KEY (slug),
	CONSTRAINT fk_circuit_model_id_model FOREIGN KEY(model_id) REFERENCES model (model_id),
	CONSTRAINT fk_circuit_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE INDEX ix_circuit_model_id ON circuit (model_id);

CREATE TABLE circuit_evaluation (
	circuit TEXT NOT NULL,
	ablation TEXT NOT NULL,
	record BLOB NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_circuit_evaluation PRIMARY KEY (circuit, ablation),
	CONSTRAINT fk_circuit_evaluation_circuit_circuit FOREIGN KEY(circuit) REFERENCES circuit (slug) ON DELETE CASCADE,
	CONSTRAINT fk_circuit_evaluation_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE TABLE circuit_member (
	circuit TEXT NOT NULL,
	unit TEXT NOT NULL,
	place BIGINT NOT NULL,
	probability DOUBLE NOT NULL,
	CONSTRAINT pk_circuit_member PRIMARY KEY (circuit, unit),
	CONSTRAINT fk_circuit_member_circuit_circuit FOREIGN KEY(circuit) REFERENCES circuit (slug) ON DELETE CASCADE
);

CREATE INDEX ix_circuit_member_unit ON circuit_member (unit);

CREATE TABLE circuit_search (
	slug TEXT NOT NULL,
	model_id TEXT NOT NULL,
	objective TEXT NOT NULL,
	circuit TEXT NOT NULL,
	alone TEXT,
	record BLOB NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_circuit_search PRIMARY KEY (slug),
	CONSTRAINT fk_circuit_search_model_id_model FOREIGN KEY(model_id) REFERENCES model (model_id),
	CONSTRAINT fk_circuit_search_circuit_circuit FOREIGN KEY(circuit) REFERENCES circuit (slug),
	CONSTRAINT fk_circuit_search_alone_circuit FOREIGN KEY(alone) REFERENCES circuit (slug),
	CONSTRAINT fk_circuit_search_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE INDEX ix_circuit_search_model_id ON circuit_search (model_id);

CREATE TABLE concept (
	name TEXT NOT NULL,
	category TEXT NOT NULL,
	domain TEXT NOT NULL,
	harmful BOOLEAN NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_concept PRIMARY KEY (name),
	CONSTRAINT fk_concept_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE TABLE concept_score (
	sae_key INTEGER NOT NULL,
	feature_index INTEGER NOT NULL,
	concept TEXT NOT NULL,
	auroc DOUBLE NOT NULL,
	auroc_low DOUBLE NOT NULL,
	auroc_high DOUBLE NOT NULL,
	auroc_n BIGINT NOT NULL,
	auroc_level DOUBLE NOT NULL,
	rate_positive DOUBLE NOT NULL,
	rate_negative DOUBLE NOT NULL,
	rate_gap DOUBLE NOT NULL,
	rate_gap_low DOUBLE NOT NULL,
	rate_gap_high DOUBLE NOT NULL,
	rate_gap_n BIGINT NOT NULL,
	rate_gap_level DOUBLE NOT NULL,
	n_positive BIGINT NOT NULL,
	n_negative BIGINT NOT NULL,
	q_value DOUBLE NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_concept_score PRIMARY KEY (sae_key, feature_index, concept),
	CONSTRAINT fk_concept_score_concept_concept FOREIGN KEY(concept) REFERENCES concept (name),
	CONSTRAINT fk_concept_score_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id),
	CONSTRAINT fk_concept_score_sae_key_feature_index_feature FOREIGN KEY(sae_key, feature_index) REFERENCES feature (sae_key, feature_index)
);

CREATE INDEX ix_concept_score_best ON concept_score (sae_key, feature_index, rate_gap DESC, concept);

CREATE INDEX ix_concept_score_order ON concept_score (sae_key, rate_gap DESC, feature_index, concept);

CREATE INDEX ix_concept_score_sae_key_concept_rate_gap ON concept_score (sae_key, concept, rate_gap);

CREATE TABLE context_sample (
	sae_key INTEGER NOT NULL,
	feature_index INTEGER NOT NULL,
	quantile_999 DOUBLE NOT NULL,
	kinds BLOB NOT NULL,
	lengths BLOB NOT NULL,
	peaks BLOB NOT NULL,
	token_ids BLOB NOT NULL,
	activations BLOB NOT NULL,
	tokens BLOB NOT NULL,
	source_ids BLOB NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_context_sample PRIMARY KEY (sae_key, feature_index),
	CONSTRAINT fk_context_sample_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id),
	CONSTRAINT fk_context_sample_sae_key_feature_index_feature FOREIGN KEY(sae_key, feature_index) REFERENCES feature (sae_key, feature_index)
);

CREATE TABLE contexts (
	sae_key INTEGER NOT NULL,
	feature_index INTEGER NOT NULL,
	contexts BLOB NOT NULL,
	histogram_edges BLOB,
	histogram_counts BLOB,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_contexts PRIMARY KEY (sae_key, feature_index),
	CONSTRAINT fk_contexts_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id),
	CONSTRAINT fk_contexts_sae_key_feature_index_feature FOREIGN KEY(sae_key, feature_index) REFERENCES feature (sae_key, feature_index)
);

CREATE TABLE direction (
	slug TEXT NOT NULL,
	model_id TEXT NOT NULL,
	site TEXT NOT NULL,
	position BIGINT NOT NULL,
	estimator TEXT NOT NULL,
	vectors BLOB NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_direction PRIMARY KEY (slug),
	CONSTRAINT fk_direction_model_id_model FOREIGN KEY(model_id) REFERENCES model (model_id),
	CONSTRAINT fk_direction_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE INDEX ix_direction_model_id ON direction (model_id);

CREATE TABLE direction_evaluation (
	direction TEXT NOT NULL,
	record BLOB NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_direction_evaluation PRIMARY KEY (direction),
	CONSTRAINT fk_direction_evaluation_direction_direction FOREIGN KEY(direction) REFERENCES direction (slug) ON DELETE CASCADE,
	CONSTRAINT fk_direction_evaluation_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE TABLE direction_reading (
	direction TEXT NOT NULL,
	record BLOB NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_direction_reading PRIMARY KEY (direction),
	CONSTRAINT fk_direction_reading_direction_direction FOREIGN KEY(direction) REFERENCES direction (slug) ON DELETE CASCADE,
	CONSTRAINT fk_direction_reading_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE TABLE direction_search (
	slug TEXT NOT NULL,
	model_id TEXT NOT NULL,
	outcome TEXT NOT NULL,
	direction TEXT,
	added TEXT,
	record BLOB NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_direction_search PRIMARY KEY (slug),
	CONSTRAINT fk_direction_search_added_direction FOREIGN KEY(added) REFERENCES direction (slug),
	CONSTRAINT fk_direction_search_direction_direction FOREIGN KEY(direction) REFERENCES direction (slug),
	CONSTRAINT fk_direction_search_model_id_model FOREIGN KEY(model_id) REFERENCES model (model_id),
	CONSTRAINT fk_direction_search_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE INDEX ix_direction_search_model_id ON direction_search (model_id);

CREATE TRIGGER explanation_fts_delete AFTER DELETE ON explanation BEGIN
    INSERT INTO explanation_fts(explanation_fts, rowid, text) VALUES ('delete', (old.feature_index << 32) + old.explanation_key, old.text);
END;

CREATE TRIGGER explanation_fts_insert AFTER INSERT ON explanation BEGIN
    INSERT INTO explanation_fts(rowid, text) VALUES ((new.feature_index << 32) + new.explanation_key, new.text);
END;

CREATE TRIGGER explanation_fts_update AFTER UPDATE OF text, explanation_key, feature_index ON explanation BEGIN
    INSERT INTO explanation_fts(explanation_fts, rowid, text) VALUES ('delete', (old.feature_index << 32) + old.explanation_key, old.text);
    INSERT INTO explanation_fts(rowid, text) VALUES ((new.feature_index << 32) + new.explanation_key, new.text);
END;

CREATE TABLE explanation (
	explanation_key INTEGER NOT NULL,
	sae_key INTEGER NOT NULL,
	feature_index INTEGER NOT NULL,
	explainer TEXT NOT NULL,
	prompt_version TEXT NOT NULL,
	text TEXT NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_explanation PRIMARY KEY (explanation_key),
	CONSTRAINT fk_explanation_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id),
	CONSTRAINT fk_explanation_sae_key_feature_index_feature FOREIGN KEY(sae_key, feature_index) REFERENCES feature (sae_key, feature_index),
	CONSTRAINT uq_explanation_sae_key_feature_index_explainer_prompt_version UNIQUE (sae_key, feature_index, explainer, prompt_version)
);

CREATE VIRTUAL TABLE explanation_fts USING fts5(
    text, content='', tokenize='unicode61 remove_diacritics 0');

CREATE TABLE explanation_score (
	explanation_key INTEGER NOT NULL,
	method TEXT NOT NULL,
	score DOUBLE NOT NULL,
	score_low DOUBLE NOT NULL,
	score_high DOUBLE NOT NULL,
	score_n BIGINT NOT NULL,
	score_level DOUBLE NOT NULL,
	control DOUBLE NOT NULL,
	control_low DOUBLE NOT NULL,
	control_high DOUBLE NOT NULL,
	control_n BIGINT NOT NULL,
	control_level DOUBLE NOT NULL,
	n_excluded BIGINT NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_explanation_score PRIMARY KEY (explanation_key, method),
	CONSTRAINT fk_explanation_score_explanation_key_explanation FOREIGN KEY(explanation_key) REFERENCES explanation (explanation_key) ON DELETE CASCADE,
	CONSTRAINT fk_explanation_score_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE TABLE feature (
	sae_key INTEGER NOT NULL,
	feature_index INTEGER NOT NULL,
	n_tokens_seen BIGINT,
	density DOUBLE,
	max_activation DOUBLE,
	n_contexts BIGINT,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_feature PRIMARY KEY (sae_key, feature_index),
	CONSTRAINT fk_feature_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id),
	CONSTRAINT fk_feature_sae_key_sae FOREIGN KEY(sae_key) REFERENCES sae (sae_key)
);

CREATE TABLE feature_link (
	study TEXT NOT NULL,
	place INTEGER NOT NULL,
	sae_key INTEGER NOT NULL,
	feature_index INTEGER NOT NULL,
	concept TEXT NOT NULL,
	kind TEXT NOT NULL,
	target TEXT NOT NULL,
	flow TEXT NOT NULL,
	is_linked BOOLEAN NOT NULL,
	is_direct BOOLEAN NOT NULL,
	strength DOUBLE NOT NULL,
	record BLOB NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_feature_link PRIMARY KEY (study, place),
	CONSTRAINT fk_feature_link_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id),
	CONSTRAINT fk_feature_link_sae_key_feature_index_feature FOREIGN KEY(sae_key, feature_index) REFERENCES feature (sae_key, feature_index),
	CONSTRAINT fk_feature_link_study_link_study FOREIGN KEY(study) REFERENCES link_study (slug) ON DELETE CASCADE
);

CREATE INDEX ix_feature_link_kind_target_strength ON feature_link (kind, target, strength);

CREATE INDEX ix_feature_link_sae_key_feature_index_strength ON feature_link (sae_key, feature_index, strength);

CREATE TABLE feature_listing (
	sae_key INTEGER NOT NULL,
	feature_index INTEGER NOT NULL,
	density DOUBLE,
	max_activation DOUBLE,
	n_contexts BIGINT,
	concept TEXT,
	rate_gap DOUBLE,
	rate_gap_low DOUBLE,
	rate_gap_high DOUBLE,
	rate_gap_n BIGINT,
	rate_gap_level DOUBLE,
	auroc DOUBLE,
	auroc_low DOUBLE,
	auroc_high DOUBLE,
	auroc_n BIGINT,
	auroc_level DOUBLE,
	text TEXT,
	explainer TEXT,
	score DOUBLE,
	score_low DOUBLE,
	score_high DOUBLE,
	score_n BIGINT,
	score_level DOUBLE,
	control DOUBLE,
	control_low DOUBLE,
	control_high DOUBLE,
	control_n BIGINT,
	control_level DOUBLE,
	CONSTRAINT pk_feature_listing PRIMARY KEY (sae_key, feature_index),
	CONSTRAINT fk_feature_listing_sae_key_feature_index_feature FOREIGN KEY(sae_key, feature_index) REFERENCES feature (sae_key, feature_index)
)
 WITHOUT ROWID

;

CREATE INDEX ix_feature_listing_by_density ON feature_listing (sae_key, density DESC, feature_index, max_activation, n_contexts, concept, rate_gap, auroc, text, explainer, score);

CREATE INDEX ix_feature_listing_by_rate_gap ON feature_listing (sae_key, rate_gap DESC, feature_index, density, max_activation, n_contexts, concept, auroc, text, explainer, score);

CREATE INDEX ix_feature_listing_by_score ON feature_listing (sae_key, score DESC, feature_index, density, max_activation, n_contexts, concept, rate_gap, auroc, text, explainer);

CREATE TABLE feature_tag (
	sae_key INTEGER NOT NULL,
	feature_index INTEGER NOT NULL,
	source TEXT NOT NULL,
	tag TEXT NOT NULL,
	place BIGINT NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_feature_tag PRIMARY KEY (sae_key, feature_index, source, tag),
	CONSTRAINT fk_feature_tag_sae_key_feature_index_feature FOREIGN KEY(sae_key, feature_index) REFERENCES feature (sae_key, feature_index),
	CONSTRAINT fk_feature_tag_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE INDEX ix_feature_tag_sae_key_tag ON feature_tag (sae_key, tag);

CREATE TABLE guard (
	slug TEXT NOT NULL,
	model_id TEXT NOT NULL,
	record BLOB NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_guard PRIMARY KEY (slug),
	CONSTRAINT fk_guard_model_id_model FOREIGN KEY(model_id) REFERENCES model (model_id),
	CONSTRAINT fk_guard_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE INDEX ix_guard_model_id ON guard (model_id);

CREATE TABLE intervention_score (
	sae_key INTEGER NOT NULL,
	feature_index INTEGER NOT NULL,
	intervention TEXT NOT NULL,
	prompts TEXT NOT NULL,
	record BLOB NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_intervention_score PRIMARY KEY (sae_key, feature_index, intervention, prompts),
	CONSTRAINT fk_intervention_score_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id),
	CONSTRAINT fk_intervention_score_sae_key_feature_index_feature FOREIGN KEY(sae_key, feature_index) REFERENCES feature (sae_key, feature_index)
);

CREATE TABLE job (
	job_key INTEGER NOT NULL,
	job_id TEXT NOT NULL,
	kind TEXT NOT NULL,
	settings TEXT NOT NULL,
	state TEXT NOT NULL,
	priority INTEGER NOT NULL,
	idempotency_key TEXT,
	created DATETIME NOT NULL,
	deadline DATETIME,
	started DATETIME,
	finished DATETIME,
	attempts INTEGER NOT NULL,
	idle_attempts INTEGER NOT NULL,
	cancel_requested BOOLEAN NOT NULL,
	worker TEXT,
	lease_token TEXT,
	lease_until DATETIME,
	heartbeat DATETIME,
	n_events INTEGER NOT NULL,
	progress TEXT,
	error TEXT,
	result TEXT,
	CONSTRAINT pk_job PRIMARY KEY (job_key),
	CONSTRAINT uq_job_idempotency_key UNIQUE (idempotency_key),
	CONSTRAINT uq_job_job_id UNIQUE (job_id)
);

CREATE INDEX ix_job_state_priority ON job (state, priority, job_key);

CREATE TABLE job_event (
	job_key INTEGER NOT NULL,
	number INTEGER NOT NULL,
	at DATETIME NOT NULL,
	kind TEXT NOT NULL,
	data TEXT NOT NULL,
	CONSTRAINT pk_job_event PRIMARY KEY (job_key, number),
	CONSTRAINT fk_job_event_job_key_job FOREIGN KEY(job_key) REFERENCES job (job_key)
);

CREATE TABLE ledger (
	sae_key INTEGER NOT NULL,
	feature_index INTEGER NOT NULL,
	stage TEXT NOT NULL,
	explainer TEXT NOT NULL,
	prompt_version TEXT NOT NULL,
	method TEXT NOT NULL,
	run_id TEXT NOT NULL,
	model TEXT NOT NULL,
	reason TEXT,
	texts BLOB NOT NULL,
	attempts BIGINT NOT NULL,
	prompt_tokens BIGINT NOT NULL,
	completion_tokens BIGINT NOT NULL,
	assumed_tokens BIGINT NOT NULL,
	cost DOUBLE,
	CONSTRAINT pk_ledger PRIMARY KEY (sae_key, feature_index, stage, explainer, prompt_version, method, run_id),
	CONSTRAINT fk_ledger_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id),
	CONSTRAINT fk_ledger_sae_key_feature_index_feature FOREIGN KEY(sae_key, feature_index) REFERENCES feature (sae_key, feature_index)
);

CREATE TABLE link_study (
	slug TEXT NOT NULL,
	model_id TEXT NOT NULL,
	sae_key INTEGER NOT NULL,
	n_tested BIGINT NOT NULL,
	n_linked BIGINT NOT NULL,
	n_linked_shuffled BIGINT NOT NULL,
	record BLOB NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_link_study PRIMARY KEY (slug),
	CONSTRAINT fk_link_study_model_id_model FOREIGN KEY(model_id) REFERENCES model (model_id),
	CONSTRAINT fk_link_study_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id),
	CONSTRAINT fk_link_study_sae_key_sae FOREIGN KEY(sae_key) REFERENCES sae (sae_key)
);

CREATE INDEX ix_link_study_model_id ON link_study (model_id);

CREATE INDEX ix_link_study_sae_key ON link_study (sae_key);

CREATE TABLE model (
	model_id TEXT NOT NULL,
	architecture TEXT NOT NULL,
	n_layers BIGINT NOT NULL,
	n_heads BIGINT NOT NULL,
	d_head BIGINT NOT NULL,
	d_model BIGINT NOT NULL,
	d_mlp BIGINT NOT NULL,
	d_vocab BIGINT NOT NULL,
	source TEXT NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_model PRIMARY KEY (model_id),
	CONSTRAINT fk_model_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE TABLE neuron_search (
	slug TEXT NOT NULL,
	first_model TEXT NOT NULL,
	second_model TEXT NOT NULL,
	record BLOB NOT NULL,
	change BLOB NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_neuron_search PRIMARY KEY (slug),
	CONSTRAINT fk_neuron_search_first_model_model FOREIGN KEY(first_model) REFERENCES model (model_id),
	CONSTRAINT fk_neuron_search_second_model_model FOREIGN KEY(second_model) REFERENCES model (model_id),
	CONSTRAINT fk_neuron_search_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE INDEX ix_neuron_search_first_model ON neuron_search (first_model);

CREATE INDEX ix_neuron_search_second_model ON neuron_search (second_model);

CREATE TABLE neuron_tax (
	slug TEXT NOT NULL,
	base_model TEXT NOT NULL,
	record BLOB NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_neuron_tax PRIMARY KEY (slug),
	CONSTRAINT fk_neuron_tax_base_model_model FOREIGN KEY(base_model) REFERENCES model (model_id),
	CONSTRAINT fk_neuron_tax_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE INDEX ix_neuron_tax_base_model ON neuron_tax (base_model);

CREATE TABLE published_score (
	sae_key INTEGER NOT NULL,
	feature_index INTEGER NOT NULL,
	source TEXT NOT NULL,
	method TEXT NOT NULL,
	value DOUBLE NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_published_score PRIMARY KEY (sae_key, feature_index, source, method),
	CONSTRAINT fk_published_score_sae_key_feature_index_feature FOREIGN KEY(sae_key, feature_index) REFERENCES feature (sae_key, feature_index),
	CONSTRAINT fk_published_score_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE TABLE run (
	run_id TEXT NOT NULL,
	command TEXT NOT NULL,
	seed BIGINT NOT NULL,
	settings JSON NOT NULL,
	git_commit TEXT,
	versions JSON NOT NULL,
	device TEXT NOT NULL,
	started DATETIME NOT NULL,
	finished DATETIME,
	CONSTRAINT pk_run PRIMARY KEY (run_id)
);

CREATE INDEX ix_run_started ON run (started);

CREATE TABLE sae (
	sae_key INTEGER NOT NULL,
	slug TEXT NOT NULL,
	release TEXT,
	sae_id TEXT NOT NULL,
	model_id TEXT,
	site TEXT NOT NULL,
	d_in BIGINT NOT NULL,
	width BIGINT NOT NULL,
	architecture TEXT NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_sae PRIMARY KEY (sae_key),
	CONSTRAINT fk_sae_model_id_model FOREIGN KEY(model_id) REFERENCES model (model_id),
	CONSTRAINT fk_sae_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id),
	CONSTRAINT uq_sae_slug UNIQUE (slug)
);

CREATE INDEX ix_sae_model_id ON sae (model_id);

CREATE TABLE sae_facts (
	sae_key INTEGER NOT NULL,
	l0 DOUBLE NOT NULL,
	explained_variance DOUBLE NOT NULL,
	ce_recovered DOUBLE NOT NULL,
	dead_share DOUBLE NOT NULL,
	n_tokens BIGINT NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_sae_facts PRIMARY KEY (sae_key),
	CONSTRAINT fk_sae_facts_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id),
	CONSTRAINT fk_sae_facts_sae_key_sae FOREIGN KEY(sae_key) REFERENCES sae (sae_key)
);

CREATE TABLE sae_ranking (
	run_id TEXT NOT NULL,
	sae_key INTEGER NOT NULL,
	record BLOB NOT NULL,
	CONSTRAINT pk_sae_ranking PRIMARY KEY (run_id, sae_key),
	CONSTRAINT fk_sae_ranking_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id),
	CONSTRAINT fk_sae_ranking_sae_key_sae FOREIGN KEY(sae_key) REFERENCES sae (sae_key)
);

CREATE TABLE sae_score (
	sae_key INTEGER NOT NULL,
	concept TEXT NOT NULL,
	best_feature INTEGER NOT NULL,
	auroc DOUBLE NOT NULL,
	auroc_low DOUBLE NOT NULL,
	auroc_high DOUBLE NOT NULL,
	auroc_n BIGINT NOT NULL,
	auroc_level DOUBLE NOT NULL,
	rate_gap DOUBLE NOT NULL,
	rate_gap_low DOUBLE NOT NULL,
	rate_gap_high DOUBLE NOT NULL,
	rate_gap_n BIGINT NOT NULL,
	rate_gap_level DOUBLE NOT NULL,
	f1 DOUBLE NOT NULL,
	f1_low DOUBLE NOT NULL,
	f1_high DOUBLE NOT NULL,
	f1_n BIGINT NOT NULL,
	f1_level DOUBLE NOT NULL,
	control_rate_gap DOUBLE NOT NULL,
	control_rate_gap_low DOUBLE NOT NULL,
	control_rate_gap_high DOUBLE NOT NULL,
	control_rate_gap_n BIGINT NOT NULL,
	control_rate_gap_level DOUBLE NOT NULL,
	n_specific BIGINT NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_sae_score PRIMARY KEY (sae_key, concept),
	CONSTRAINT fk_sae_score_concept_concept FOREIGN KEY(concept) REFERENCES concept (name),
	CONSTRAINT fk_sae_score_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id),
	CONSTRAINT fk_sae_score_sae_key_sae FOREIGN KEY(sae_key) REFERENCES sae (sae_key)
);

CREATE INDEX ix_sae_score_concept ON sae_score (concept);

CREATE TABLE sae_specificity (
	sae_key INTEGER NOT NULL,
	concept TEXT NOT NULL,
	record BLOB NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_sae_specificity PRIMARY KEY (sae_key, concept),
	CONSTRAINT fk_sae_specificity_concept_concept FOREIGN KEY(concept) REFERENCES concept (name),
	CONSTRAINT fk_sae_specificity_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id),
	CONSTRAINT fk_sae_specificity_sae_key_sae FOREIGN KEY(sae_key) REFERENCES sae (sae_key)
);

CREATE TABLE tuning_study (
	slug TEXT NOT NULL,
	model_id TEXT NOT NULL,
	record BLOB NOT NULL,
	run_id TEXT NOT NULL,
	CONSTRAINT pk_tuning_study PRIMARY KEY (slug),
	CONSTRAINT fk_tuning_study_model_id_model FOREIGN KEY(model_id) REFERENCES model (model_id),
	CONSTRAINT fk_tuning_study_run_id_run FOREIGN KEY(run_id) REFERENCES run (run_id)
);

CREATE INDEX ix_tuning_study_model_id ON tuning_study (model_id);

