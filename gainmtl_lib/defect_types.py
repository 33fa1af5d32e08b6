"""Which defect: a head that names its type beside the verdict.

It is fitted once the verdict is learnt, on the features that decided it (`GainOutput.deciding_features`), so that it
changes neither verdict nor map. N pictures, C channels.
"""

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from gainmtl_lib.dataset import GainDataModule
from gainmtl_lib.metrics import is_named
from gainmtl_lib.model import GAINMTLModel, TypeHead
from gainmtl_lib.wording import join_words

logger = logging.getLogger(__name__)

FEWEST = 5  # training pictures of a type; one with fewer is not named
STRENGTH = 0.1  # scikit-learn's C; in cross-validation over tiles 0.03 to 1 differed little, but for S1, which liked 1


def fit_types(model: GAINMTLModel, data: GainDataModule) -> None:
    """Give a trained model, on whatever device it is, a `TypeHead`, where training data names two types or more.

    A logistic regression of the types on the standardised features of the training defects, seen as they are; each
    type weighs the same. `data` must be set up. A model without the features is left as it is.
    """
    samples = data.samples
    named = samples["defect_type"].where((samples["split"] == "train") & is_named(samples))
    counts = named.value_counts()
    names = sorted(counts.index[counts >= FEWEST])
    if len(names) < 2:
        return
    if few := sorted(counts.index[counts < FEWEST]):
        told = "defect types that are not named, for they have fewer than %d training pictures: %s"
        logger.info(told, FEWEST, join_words(few))
    rows, features = _features(model, data, {*named.index[named.isin(names)]})
    if features is None:
        return
    mean, spread = features.mean(0), features.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    fit = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=1000)
    fit.fit((features - mean) / spread, named[rows])
    weight, bias = fit.coef_ / spread, fit.intercept_ - (fit.coef_ / spread) @ mean
    if len(names) == 2:  # one row, of the second
        weight, bias = (np.concatenate([-part, part]) / 2 for part in (weight, bias))
    model.types = TypeHead(model.width, names)
    model.types.load_state_dict({"out.weight": torch.from_numpy(weight), "out.bias": torch.from_numpy(bias)})
    model.types.to(next(model.parameters()).device)


@torch.inference_mode()
def _features(
    model: GAINMTLModel, data: GainDataModule, wanted: set[int]
) -> tuple[list[int], NDArray[np.float32] | None]:
    """Rows of the training split that are wanted, and their features, (N, C)."""
    device, rows, features = next(model.parameters()).device, [], []
    for batch in data.loader("train"):
        chosen = [place for place, row in enumerate(batch.index.tolist()) if row in wanted]
        if not chosen:
            continue
        output = model.eval()(batch.images[chosen].to(device))
        if output.deciding_features is None:
            return [], None
        rows += batch.index[chosen].tolist()
        features.append(output.deciding_features.cpu().numpy())
    return rows, np.concatenate(features)
