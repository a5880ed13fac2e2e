"""Learn an early-stage ranker (ESR) by policy gradient on the reward of the whole two-stage system."""
