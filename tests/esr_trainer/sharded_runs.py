"""Several runs one after the other under one torchrun, which takes longer to start than they do: a JSON list each."""

import json
import sys

from esr_trainer.__main__ import command_line
from esr_trainer.ranks import joined

if __name__ == "__main__":
    with joined("cpu"):
        code = max(command_line(json.loads(arguments)) for arguments in sys.argv[1:])
    sys.exit(code)
