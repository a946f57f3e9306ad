"""The generated cases of this folder are as many as promised, and none of the numbers stands elsewhere."""

import re
from pathlib import Path

from fuzz.cases import CASES, LEAST


def test_enough_cases_are_generated() -> None:
    assert sum(CASES.values()) >= LEAST
    text = "".join(file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("test_*.py"))
    assert sorted(re.findall(r'CASES\["(\w+)"\]', text)) == sorted(CASES)  # each once
    assert not re.search(r"max_examples=\d", text)
