"""`python -m server` is `estuary`."""

from server.shell.cli import main

raise SystemExit(main())
