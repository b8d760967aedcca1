from tests.training.conftest import prepared, texts

__all__ = ["prepared", "texts"]
