import pytest

from safe_sail.errors import FileMissing
from safe_sail.organism.load import ORGANISM_VARIANTS, organism_path, organism_record, organism_sae_paths


def test_every_variant_has_its_folder():
    for variant in ORGANISM_VARIANTS:
        assert (organism_path(variant) / "tokenizer.json").is_file()


def test_an_unknown_variant_is_refused_with_the_known_ones():
    with pytest.raises(FileMissing, match="base, aligned, backdoored"):
        organism_path("gifted")


def test_a_variant_name_cannot_leave_the_assets():
    with pytest.raises(FileMissing):
        organism_path("../assets/base")


def test_the_record_describes_every_shipped_sae():
    shipped = [slug for variant in ORGANISM_VARIANTS for slug in organism_sae_paths(variant)]
    assert sorted(organism_record()["saes"]) == sorted(shipped)


def test_saes_are_listed_by_the_variant_they_were_trained_on():
    assert {slug.partition(".")[0] for slug in organism_sae_paths()} == {"organism"}
    assert list(organism_sae_paths("backdoored")) == ["organism-backdoored.resid_post.3.topk8-1024"]
    assert organism_sae_paths("base") == {}
    with pytest.raises(FileMissing, match="gifted"):
        organism_sae_paths("gifted")
