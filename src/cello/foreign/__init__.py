"""Cells from outside: what they take and return, what their code can read, and undoing what it does."""
