"""``python -m asikit`` is the command ``asi``."""

from __future__ import annotations

from asikit.cli import main

if __name__ == "__main__":
    main()
