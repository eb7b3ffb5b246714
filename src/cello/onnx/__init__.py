"""Models with Cello's layers as ONNX files, which other runtimes run without Python and without torch."""

from cello.onnx.export import export, translations

__all__ = ["export", "translations"]
