"""What every request body is: strictly typed, without infinities, unknown fields kept aside."""

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """A request body: strict types, no infinities, unknown fields kept aside."""

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, frozen=True, hide_input_in_errors=True
    )
