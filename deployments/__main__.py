"""`python -m deployments`: the launcher."""

import sys

from deployments.launcher import main

sys.exit(main())
