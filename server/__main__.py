"""`python -m server` is `estuary`."""

from server.cli import main

raise SystemExit(main())
