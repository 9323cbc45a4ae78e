"""Shares of the examples that a law is tried on; `tests/conftest.py` has the profiles: a few every day, more in CI."""

from hypothesis import settings


def one_in(share: int) -> settings:
    """One in `share` of the profile's examples, where each of them runs a model, a program or a page."""
    return settings(max_examples=settings.default.max_examples // share)
