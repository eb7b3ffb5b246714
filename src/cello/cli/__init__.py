"""The command ``cello``; it needs the packages of the extra ``tasks``."""
