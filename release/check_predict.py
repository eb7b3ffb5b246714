"""Check that cello[predict] is enough to predict: python -I release/check_predict.py FOLDER."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

os.environ["PATH"] = os.devnull

if find_spec("lightning") or find_spec("datasets"):
    sys.exit("this environment has packages of cello[tasks], so that nothing is shown")

from cello.tasks.classify import Classifier

classifier = Classifier.load(Path(sys.argv[1]))
for text in ("a fine film", "a dull film"):
    prediction = classifier.predict(text)
    print(f"{text}: {prediction.label} {prediction.probability:.3f}")
    if prediction.label != {"fine": "pos", "dull": "neg"}[text.split()[1]]:
        sys.exit("this is not what the model predicted when it was stored")
