"""`python -m nnkernels.pc`; see nnkernels.pc.command."""

import sys

from nnkernels.pc.command import main

sys.exit(main())
