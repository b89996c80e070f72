"""The committed slice of the standard library and its tokenizer."""
import pytest
import torch

from frugal.data import code_text


def test_every_heldout_document_survives_the_tokenizer():
    tokenizer = code_text.code_tokenizer()
    for document in code_text.heldout_documents():
        ids = tokenizer.encode(document.text, special=False)
        assert tokenizer.decode(ids) == document.text
        assert max(ids) < code_text.VOCAB_SIZE and code_text.END_OF_TEXT not in ids


def test_documents_stand_behind_one_end_of_text_token_each():
    tokens = code_text.heldout_tokens()
    assert tokens[0] == code_text.END_OF_TEXT
    assert int((tokens == code_text.END_OF_TEXT).sum()) == len(code_text.heldout_documents())


def test_windows_do_not_overlap_and_cover_the_slice():
    tokens = code_text.heldout_tokens()
    whole = code_text.heldout_windows(256)
    assert torch.equal(whole.flatten(), tokens[:whole.numel()]) and len(tokens) - whole.numel() < 256
    few = code_text.heldout_windows(256, 5)
    assert torch.equal(few[0], whole[0]) and torch.equal(few[-1], whole[-1]) and len(few) == 5


@pytest.mark.parametrize("length, count", [(256, 10_000), (0, 1), (256, 0)])
def test_windows_that_are_not_there_are_refused(length, count):
    with pytest.raises(ValueError, match="take 1.."):
        code_text.heldout_windows(length, count)


def test_a_special_token_in_the_text_stays_text():
    tokenizer = code_text.code_tokenizer()
    assert code_text.END_OF_TEXT not in tokenizer.encode("<|endoftext|>", special=False)


def test_a_missing_corpus_names_the_recipe(monkeypatch, tmp_path):
    monkeypatch.setenv("FRUGAL_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="build_code_corpus.py"):
        code_text.load_corpus()


def test_the_licence_is_beside_the_slice():
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (code_text.ASSETS / "licences" / "PSF.txt").read_text()
