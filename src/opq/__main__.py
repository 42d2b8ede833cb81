"""`python -m opq` is `opq`."""

import sys

from opq.cli import main

sys.exit(main())
