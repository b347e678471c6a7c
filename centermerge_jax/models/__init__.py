"""Models whose parameters are pure nested dicts: `vit` and what is loaded into it."""
