"""The engine alone, without Ray: the encoder against its floor, runs of several images or prompts."""
