"""The bundled model is what its card says, and val.txt had no part in it."""

import json
from pathlib import Path

import pytest

from minigpt import hub
from minigpt.data.documents import documents, fingerprint

CORPUS = Path(__file__).parents[3] / "shared/corpus"
WEIGHTS = hub.bundled()
FACTS = json.loads((WEIGHTS / "training.json").read_text())


def test_vocabulary_and_weights_were_made_of_one_text_and_judged_by_another():
    vocabulary = json.loads((WEIGHTS / "tokenizer_config.json").read_text())["trained_on"]["sha256"]
    assert vocabulary == FACTS["train"] != FACTS["val"]


@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs the corpus in ../shared/corpus")
def test_it_was_trained_on_train_txt_in_which_no_document_of_val_txt_occurs():
    assert fingerprint([CORPUS / "train.txt"]) == FACTS["train"]
    assert fingerprint([CORPUS / "val.txt"]) == FACTS["val"]
    held_out = set(documents([CORPUS / "val.txt"]))
    assert len(held_out) > 80
    assert held_out.isdisjoint(documents([CORPUS / "train.txt"]))


def test_its_card_names_its_figures():
    card = (WEIGHTS / "README.md").read_text()
    facts = [f"{FACTS['n_parameters']:,} parameters", "bits per byte"]
    for stage in FACTS["stages"]:
        facts += [f"{stage['settings']['steps']:,} steps of", f"{stage['tokens']:,} tokens"]
    for fact in facts:
        assert fact in card
    assert (WEIGHTS / "model.safetensors").stat().st_size < 25e6
