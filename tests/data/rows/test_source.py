import dataclasses
import importlib

import pytest

from lit_probsft import data
from lit_probsft.cli.config.moved import register_moved_modules
from lit_probsft.data import Source


def test_a_custom_source_needs_only_two_methods():
    @dataclasses.dataclass(frozen=True)
    class Sums(Source):
        count: int = 3

        def load(self):
            return list(range(self.count))

        def conversation(self, row):
            return [{"role": "user", "content": f"{row}+1"}, {"role": "assistant", "content": str(row + 1)}]

    assert Sums().fingerprint() == Sums(3).fingerprint() != Sums(4).fingerprint()
    assert Sums().describe() == {"source": "Sums", "count": 3}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("sources", "FigletPuzzles"),
        ("sources", "Rows"),
        ("sources", "Source"),
        ("choices", "MultipleChoice"),
        ("mixture", "Mixture"),
        ("mixture", "Part"),
    ],
)
def test_the_import_path_of_an_old_run_finds_the_source(module, name):
    register_moved_modules()
    old = importlib.import_module(f"lit_probsft.data.{module}")
    assert getattr(old, name) is getattr(data, name)
