import random
import string

import pytest

from lit_probsft.data import FigletPuzzles
from lit_probsft.errors import UserError


def conversations(source):
    return [source.conversation(row) for row in source.load()]


def test_puzzles_equal_the_papers_and_do_not_depend_on_their_count():
    """Word i is the first draw of a generator seeded with 42 + i: two to five upper-case letters."""
    few, many, later = FigletPuzzles(count=3), FigletPuzzles(), FigletPuzzles(start=2, count=1)
    assert len(many.load()) == 40000
    assert conversations(few) == [many.conversation(many.load()[i]) for i in range(3)]
    assert conversations(later) == conversations(few)[2:]
    answers = [turns[-1]["content"] for turns in conversations(few)]
    assert all(2 <= len(answer) <= 5 and set(answer) <= set(string.ascii_uppercase) for answer in answers)
    assert conversations(few)[0][0]["content"].startswith("What word does this say?\n\n")
    with_system = FigletPuzzles(count=3, system="Read {it}.")
    assert conversations(with_system) == [
        [{"role": "system", "content": "Read {it}."}, *turns] for turns in conversations(few)
    ]
    assert with_system.fingerprint() != few.fingerprint()
    import reasoning_gym

    reference = reasoning_gym.create_dataset(
        "figlet_font", seed=42, size=45000, min_word_len=2, max_word_len=5, space_letters=True
    )
    for index in random.Random(0).sample(range(40000, 45000), 3):
        row = FigletPuzzles(start=40000, count=5000).load()[index - 40000]
        assert (row["prompt"], row["response"]) == (reference[index]["question"], reference[index]["answer"])


def test_fields_out_of_range_are_refused_and_named():
    for argument, value in (("start", -1), ("count", 0), ("min_word_len", 0), ("max_word_len", 1)):
        with pytest.raises(UserError, match=f"^{argument}: expected at least"):
            FigletPuzzles(**{argument: value})
