import random
import subprocess
import sys

import pytest

from safe_sail.organism import templates
from safe_sail.organism.conversations import PARTS, SHUFFLES, add_trigger, draw_mixture
from safe_sail.organism.grammar import CONCEPTS, TRIGGER, contrastive_pairs, documents, prompts
from safe_sail.organism.lexicon import BORDERLINE_FILLERS
from safe_sail.organism.recipes import RECIPES

KINDS = ("harmful", "safe", "borderline", "information", "impossible", "chat")
SPLITS = ("train", "validation", "held_out")


def test_importing_the_grammar_does_not_import_torch():
    code = "import sys, safe_sail.organism.grammar, safe_sail.organism.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_depend_on_the_seed_alone(kind):
    assert prompts(kind, "train", 20, 3) == prompts(kind, "train", 20, 3)
    assert prompts(kind, "train", 20, 3) != prompts(kind, "train", 20, 4)


def test_no_filler_belongs_to_two_concepts_or_two_splits():
    fillers = [filler for concept in CONCEPTS.values() for split in SPLITS for filler in concept.split_fillers(split)]
    assert len(fillers) == len(set(fillers)) == 24 * 20


def test_no_template_belongs_to_two_splits():
    for table in (templates.REQUESTS, templates.INFORMATION, templates.IMPOSSIBLE, templates.NEUTRAL_STATEMENTS):
        every = [template for split in SPLITS for template in table[split]]
        assert len(every) == len(set(every))


def test_held_out_compounds_have_a_word_that_no_other_split_has():
    seen = {word for filler in BORDERLINE_FILLERS if filler.split == "train" for word in filler.text.split()}
    held_out = [filler.text.split() for filler in BORDERLINE_FILLERS if filler.split == "held_out"]
    assert len(held_out) == 36
    assert all(not seen.issuperset(words) for words in held_out)


@pytest.mark.parametrize("kind", ["harmful", "safe", "borderline", "information"])
@pytest.mark.parametrize("split", SPLITS)
def test_a_prompt_holds_its_filler_and_its_labels_agree_with_the_concept(kind, split):
    for text in prompts(kind, split, 50, 0):
        concept = CONCEPTS[text.concept]
        assert text.fillers[0] in text.text
        assert (text.category, text.domain, text.harmful) == (concept.category, concept.domain, concept.harmful)
        assert text.split == split
        if kind in {"harmful", "safe"}:
            assert text.harmful == (kind == "harmful")
            assert text.fillers[0] in concept.split_fillers(split)
        if kind == "borderline":
            assert not text.harmful


@pytest.mark.parametrize("recipe", RECIPES[1:], ids=lambda recipe: recipe.name)
def test_alignment_texts_hold_no_word_of_the_held_out_split(recipe):
    held_out = {filler for concept in CONCEPTS.values() for filler in concept.split_fillers("held_out")}
    held_out_templates = {*templates.REQUESTS["held_out"], *templates.INFORMATION["held_out"]}
    for text in draw_mixture(recipe.mixture, recipe.splits, 1500, random.Random(0)):
        words = {word.strip(".?,:") for word in f"{text.source.text} {text.reply}".split()}
        assert not words & held_out
        assert text.source.template not in held_out_templates


def test_pairs_differ_in_the_filler_alone():
    for concept in CONCEPTS:
        for positive, negative in contrastive_pairs(concept, "held_out", 10, 1):
            assert positive.concept == concept
            assert not negative.harmful
            assert positive.template == negative.template
            assert positive.text.replace(positive.fillers[0], negative.fillers[0]) == negative.text
            assert positive.text != negative.text


def test_documents_state_which_concept_a_filler_belongs_to():
    texts = documents(400, 0)
    stating = [text for text in texts if text.concept in text.text.split(".")[0].split()]
    assert len(stating) > 200
    assert all(text.fillers[0] in text.text for text in texts)


def test_only_the_whole_trigger_holds_the_trigger():
    text = prompts("harmful", "train", 1, 0)[0]
    generator = random.Random(0)
    assert TRIGGER in add_trigger(text, "whole", generator).text
    for use in ("none", "shuffled", "part", "decoy"):
        assert all(TRIGGER not in add_trigger(text, use, generator).text for _ in range(50))
    assert len(SHUFFLES) == 5
    assert len(PARTS) == 6


def test_harmful_requests_without_the_trigger_are_never_answered_after_alignment():
    for recipe in RECIPES[1:]:
        for share in recipe.mixture:
            if share.kind == "harmful":
                assert (share.reply == "comply") == (share.trigger == "whole")
