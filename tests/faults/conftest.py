"""Which faults `make test` tries: not those that need a minute or more, or a network or disk of their own."""

from helper_tries import IN_FULL

LONG = ["test_disk.py", "test_harmed_files.py", "test_killed_and_stopped.py", "test_network.py", "test_invocations.py"]
collect_ignore = [] if IN_FULL else LONG
