"""How much of its devices a run uses."""

from __future__ import annotations

from dataclasses import dataclass

# Dense bf16 FLOP/s by a part of the device's name, from the makers' data sheets; the first that fits.
PEAKS = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "MI300X": 1307e12,
}


@dataclass(frozen=True)
class Utilization:
    """What an update costs, against what the devices could do.

    Attributes:
        flops: of one update, over all ranks.
        peak: FLOP/s of all ranks' devices; None where it is not known.
    """

    flops: float
    peak: float | None

    def of(self, seconds: float) -> float | None:
        """Model FLOPs utilization (MFU) of an update of so many seconds, in [0, 1]."""
        return None if self.peak is None else self.flops / seconds / self.peak

    def seconds_at(self, share: float) -> float | None:
        """Of an update that uses such a share of the devices, in (0, 1]."""
        return None if self.peak is None else self.flops / (share * self.peak)


def peak_flops(device_name: str | None, dtype: str) -> float | None:
    """FLOP/s of a device at its best in a type of compute; None where it is not known."""
    if device_name is None or dtype != "bfloat16":
        return None
    return next((peak for part, peak in PEAKS.items() if part in device_name), None)
