"""What the clients ask for where they ask for a structure."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Pet(BaseModel):
    """An animal. Any text of this form is short, whatever a random model would like to write."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat", "dog"]
    is_tame: bool


ASK = "Which pet is it?"
