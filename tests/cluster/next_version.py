"""The application as its next version would be: the same, under another import path, as a new image would bring it."""

from deployments.app import build

__all__ = ["build"]
