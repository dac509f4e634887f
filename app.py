"""The studio: ``python app.py [command]``; without a command it serves the pages."""

import sys

if __name__ == "__main__":
    from app.cli import main

    sys.exit(main())
