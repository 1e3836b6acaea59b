"""`python -m datafree` is the `datafree` command; torchrun starts it this way."""

from __future__ import annotations

from datafree.cli import main

if __name__ == "__main__":
    main()
