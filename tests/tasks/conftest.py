from __future__ import annotations

import pytest

pytest.importorskip("lightning", reason="needs the packages of cello[tasks]")
pytest.importorskip("tokenizers", reason="needs the packages of cello[tasks]")
