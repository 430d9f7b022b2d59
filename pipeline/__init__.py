"""The command lines. Whatever starts here lets threads that wait for others sleep.

OpenMP's threads spin by default, which takes the cores that the others need where a machine is busy. The
library reads this when torch loads it, so that it has to be said before.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
