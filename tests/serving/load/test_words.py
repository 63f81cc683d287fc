"""Random texts are of single words."""

from distaff.serving.load.words import WORDS, spelled


def test_each_number_is_a_word_of_its_own() -> None:
    assert len(set(WORDS)) == len(WORDS) > 50 and all(word.isalpha() and word.islower() for word in WORDS)
    assert spelled(range(len(WORDS))).split(" ") == list(WORDS)
