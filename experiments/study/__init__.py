"""The paper's claims on experts that are fine-tuned here: see `__main__`."""
