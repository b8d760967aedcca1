"""Image classification: vision transformers of timm, on the trainer's engines."""
