"""Tests on several nodes. What the launcher sets must be set before any module here imports Ray."""

from deployments.environment import prepare_environment

prepare_environment()
