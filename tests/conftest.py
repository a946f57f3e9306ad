"""One thread everywhere: the suite shares its machine, and results must not depend on the number of cores."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
