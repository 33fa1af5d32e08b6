"""``python -m gainmtl_lib.cli``: the command where nothing is installed."""

from gainmtl_lib.cli import main

if __name__ == "__main__":
    main()
