"""The one place where an item of a bench is tried: whatever goes wrong there, the others go on."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from ..errors import UserError
from ..generators.generated import GenerationFailed

LOG = "errors.log"
T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """Why there is no object.

    Attributes:
        retry: it was an error, which may not come a second time; else the generator made nothing of this picture.
        refusal: the text of a ValueError, by which a generator refuses settings too.
    """

    reason: str
    retry: bool = False
    refusal: str | None = None


def attempt(work: Callable[[], T], what: str, out: Path) -> T | Failure:
    """What ``work`` returns, or why it failed; an error's traceback goes to ``errors.log`` in ``out`` under ``what``.

    Raises:
        UserError: of ``work``; it ends the bench.
    """
    try:
        return work()
    except UserError:
        raise
    except GenerationFailed as error:
        return Failure(str(error))
    except Exception as error:
        with (out / LOG).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{what}\n{traceback.format_exc()}\n")
        refusal = str(error) if isinstance(error, ValueError) else None
        failure = Failure(f"{type(error).__name__}: {error}", retry=True, refusal=refusal)
    # here the traceback, which held the run's tensors, is gone
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return failure
