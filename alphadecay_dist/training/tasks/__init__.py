"""What the trainer trains: a folder a family of models."""
