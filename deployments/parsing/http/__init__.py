"""HTTP: reads forms and streams answers. The rest of `parsing/` never imports this folder."""
