"""``python -m prefix_rl`` is ``prefix-rl``."""

from .cli import main

if __name__ == "__main__":
    main()
