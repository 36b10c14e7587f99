"""``python -m forethought`` is the command ``forethought``."""

from forethought.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
