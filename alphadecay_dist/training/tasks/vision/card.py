"""What the card of an export says of an image classifier."""

from __future__ import annotations

from typing import Any

from alphadecay_dist.training.state import SavedState
from alphadecay_dist.training.tasks.card import TaskCard
from alphadecay_dist.training.tasks.vision.sources import DIGITS

MEASURED = {
    "loss": "mean cross entropy over all validation images, in nats",
    "top1": "percent of them whose label has the largest output",
    "top5": "percent of them whose label is among the five largest outputs",
}
OF_AVERAGE = {
    f"ema_{name}": f"{text}; of the moving average of the weights" for name, text in MEASURED.items()
}
USAGE = """\
import timm

model = timm.create_model("local-dir:{folder}", pretrained=True)
"""


def card_of(state: SavedState) -> TaskCard:
    """The card of a run's model."""
    config = state.config
    head: dict[str, Any] = {"pipeline_tag": "image-classification"}
    source = config.data.source
    if source == "imagenet-1k":
        head["datasets"] = ["ILSVRC/imagenet-1k"]
    images = "scikit-learn's digits" if source in DIGITS else f"`{source}`"
    size = config.task.image_size
    return TaskCard(
        model=f"an image classifier ({config.model.name} of timm, {config.task.classes} classes)",
        data=f"{images}, at {size} x {size} pixels",
        head=head,
        tags=("vit", "timm"),
        measured={**MEASURED, **OF_AVERAGE},
        metrics={"top1": "accuracy", "ema_top1": "accuracy"},
        usage=USAGE,
        library="timm",
    )
