"""The native engine: compiled cells on the CPU, in C++."""

from cello.engines.native.engine import Native

__all__ = ["Native"]
