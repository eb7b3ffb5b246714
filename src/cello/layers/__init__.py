"""Layers x directions x dropout over any cell."""

from cello.layers.stack import MERGES, StackResult, run_stack

__all__ = ["MERGES", "StackResult", "run_stack"]
