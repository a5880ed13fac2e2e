"""Whole procedures: the closed loop, learning from bandit feedback, and PG-Ret."""
