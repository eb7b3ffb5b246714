"""Cells from outside: what their code can read, what it does when it runs, and undoing that."""
