"""schema: the schema of recipes, for editors that check YAML while it is typed."""

from __future__ import annotations

from typing import Any

from decode.config import TrainConfig

__all__ = ["schema"]


def schema() -> dict[str, Any]:
    """JSON schema of a recipe, with defaults and a description of every key."""
    from pydantic import ConfigDict, create_model

    # pydantic hands its settings down to the dataclasses that a model holds
    settings = ConfigDict(use_attribute_docstrings=True, extra="forbid")
    whole: dict[str, Any] = create_model(
        "Holder", __config__=settings, recipe=TrainConfig
    ).model_json_schema()
    recipe: dict[str, Any] = whole["$defs"].pop("TrainConfig")
    return {**recipe, "$defs": whole["$defs"]}
