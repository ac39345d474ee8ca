"""The command line's verbs, one file each: its click command, what it does and what it says.

`--help` must stay quick and work everywhere, so these modules import numpy, the runtime and torch only
inside the functions that need them.
"""
