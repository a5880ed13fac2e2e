"""Learn an early-stage ranker (ESR) by policy gradient on the reward of the whole two-stage system."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported: 1.31 reports to Microsoft
