"""Tests: unit (no Ray), integration (a real local Serve), cluster (several nodes)."""
