"""``python -m bootstream`` is ``bootstream``."""

from bootstream.cli import main

if __name__ == "__main__":
    main()
