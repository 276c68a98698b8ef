"""schema: the schema of recipes and jobs, for editors that check YAML while it is typed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decode.config import TrainConfig
from decode.verbs.batch import Job

__all__ = ["schema"]

KINDS: Mapping[str, type] = {"recipe": TrainConfig, "job": Job}


def schema(kind: str = "recipe") -> dict[str, Any]:
    """JSON schema of a kind of file, with defaults and a description of every key.

    Args:
        kind: `recipe`, for `decode train`, or `job`, for `decode batch`.

    Raises:
        ValueError: if there is no such kind.
    """
    from pydantic import ConfigDict, create_model

    if kind not in KINDS:
        raise ValueError(f"there is no schema of {kind!r}; choose from {', '.join(KINDS)}")
    of = KINDS[kind]
    # pydantic hands its settings down to the dataclasses that a model holds
    settings = ConfigDict(use_attribute_docstrings=True, extra="forbid")
    whole: dict[str, Any] = create_model(
        "Holder", __config__=settings, held=(of, ...)
    ).model_json_schema()
    own: dict[str, Any] = whole["$defs"].pop(of.__name__)
    return {**own, "$defs": whole["$defs"]}
