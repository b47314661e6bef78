"""python -m anetorch: the same as the command ``anetorch``."""

from anetorch.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
