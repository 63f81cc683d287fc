"""Bad words as tokens: with and without a space before them, each sequence once."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Vocabulary
from tokenizers import decoders, models, pre_tokenizers

from distaff.models.checkpoints import open_checkpoint
from distaff.models.tokenizer import Tokenizer
from distaff.serving.bad_words import spellings


@pytest.fixture
def tokenizer() -> Tokenizer:
    """Byte-level, with single characters and a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("b", "a"), ("ba", "d"), ("Ġ", "bad")]
    tokens = [*alphabet, *(left + right for left, right in merges)]
    backend = Vocabulary(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, source="test", special={})


def test_a_word_is_spelled_with_and_without_a_space(tokenizer: Tokenizer) -> None:
    bare, spaced = spellings(["bad"], tokenizer)
    assert (len(bare), len(spaced)) == (1, 1) and bare != spaced


def test_a_space_given_with_the_word_changes_nothing(tokenizer: Tokenizer) -> None:
    assert spellings([" bad"], tokenizer) == spellings(["bad"], tokenizer)
    assert spellings(["bad", " bad", "bad"], tokenizer) == spellings(["bad"], tokenizer)


def test_a_sequence_that_ends_in_another_is_left_out(tokenizer: Tokenizer) -> None:
    """A space is a token of its own before "x", so that banning "x" bans " x" too."""
    (alone,) = spellings(["x"], tokenizer)
    assert len(alone) == 1
    assert spellings(["xx", "x"], tokenizer) == (alone,)


def test_spaces_are_a_word_too(tokenizer: Tokenizer) -> None:
    (space,) = spellings([" "], tokenizer)
    assert len(space) == 1
    (newline,) = spellings(["\n"], tokenizer)
    assert tokenizer.decode(newline) == "\n"


@pytest.mark.slow
def test_words_of_smollm2(smollm2: Path) -> None:
    """What vLLM bans is banned: the bare word, and the one behind a space where that is as long and starts otherwise.
    And so are both in every case."""
    tokenizer = open_checkpoint(smollm2).tokenizer()
    for word in ("Paris", "the capital", "damn", "Python3", "un deux trois", "ÆØÅ", "."):
        bare, spaced = (tuple(tokenizer.encode(text, add_special=False)) for text in (word, " " + word))
        found = spellings([word], tokenizer)
        of_vllm = {bare, spaced} if bare[0] != spaced[0] and len(bare) == len(spaced) else {bare}
        assert of_vllm <= set(found)
        assert all(any(ids[-len(each) :] == each for each in found) for ids in (bare, spaced))
