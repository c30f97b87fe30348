"""Imported by the fork server of processes.py alone, before all else: it ends with the process that started it.

By itself it would first import everything that it was told to, and then take seconds to shut torch down.
"""

import atexit
import os
import signal

from ddp_workbook.distributed.parent import end_with_parent

signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stop button is for the notebook; later the server does so itself
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see processes.prepare()
atexit.register(os._exit, 0)  # when nobody needs it any more
end_with_parent(os.getppid())
