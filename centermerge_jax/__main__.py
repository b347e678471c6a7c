"""`python -m centermerge_jax` is `centermerge`."""

from centermerge_jax.cli import main

if __name__ == "__main__":
    main()
