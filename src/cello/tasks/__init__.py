"""Whole jobs made of Cello's layers: data, model, training, report.

The modules here need the packages of the extra ``tasks``: ``pip install ".[tasks]"`` in Cello's
checkout.
"""
