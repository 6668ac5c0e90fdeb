"""What the schema is written with: types of numbers, and keys that say what they are about."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


def as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Positive = Annotated[Int, Field(gt=0)]
NotNegative = Annotated[Int, Field(ge=0)]
Seed = Annotated[Int, Field(ge=0, le=10**18)]  # PyTorch takes 64 bits
PositiveFloat = Annotated[Float, Field(gt=0)]
NotNegativeFloat = Annotated[Float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]  # True is all, False none

# What a key is about; code that compares runs or predictions asks `keys_of` and lists none by hand.
TOPICS = {
    "network": "the network: with the same weights, another value predicts otherwise",
    "recipe": "what a network is trained on, how, and which of its weights are kept",
    "base": "the same of the base learner (stage 1); other keys are about it too and say so in the schema",
    "protocol": "what is measured on, and how",
    "prediction": "what is made of the network's scores on images of one's own",
    "seed": "one draw of many: runs are compared over several",
    "place": "where files lie, which changes no result",
    "machine": "speed, memory and processes, which change no result beyond rounding",
    "record": "what is written and when, which changes no result",
}


def about(topic: str, description: str, *also: str) -> Any:
    """A required key that is about a topic (and others)."""
    return Field(description=description, json_schema_extra={"topics": [topic, *also]})


def derived(topic: str, description: str, *also: str) -> Any:
    """A key that may be left empty; `util.schema.DERIVED` then says what it is."""
    return Field(None, description=description, json_schema_extra={"topics": [topic, *also]})
