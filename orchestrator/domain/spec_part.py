"""What every part of a spec is: immutable, and without keys or numbers that mean nothing."""

from pydantic import BaseModel, ConfigDict


class SpecPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
