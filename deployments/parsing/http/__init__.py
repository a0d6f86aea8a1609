"""HTTP: forms in, streamed answers out. The rest of `parsing/` never imports it."""
