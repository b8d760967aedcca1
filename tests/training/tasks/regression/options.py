from __future__ import annotations

from dataclasses import dataclass

from alphadecay_dist.errors import UserError


@dataclass(frozen=True)
class RegressionOptions:
    """What regression has beside what every recipe has.

    Attributes:
        noise: standard deviation of what is added to the answers.
        average: how much of the moving average of the weights stays at an update; evaluations use it.
        whole: let the validation set be as large as a global batch, not half of it.
    """

    noise: float = 0.01
    average: float = 0.5
    whole: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.average < 1:
            raise UserError(f"average: found {self.average}, expected a number in [0, 1)")
