import json
import math

import numpy as np
import torch

from prefopt.support.json_values import json_values

NAN = math.nan


def test_anything_becomes_json():
    odd = {"a": torch.tensor([1.5, NAN]), 2: np.float32(0.5), "c": (None, True, {"d": math.inf}), "e": {1}}
    assert json.loads(json.dumps(json_values(odd), allow_nan=False)) == {
        "a": [1.5, None],
        "2": 0.5,
        "c": [None, True, {"d": None}],
        "e": "{1}",
    }
