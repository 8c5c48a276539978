"""delphi's folders: `explanations/<module>_latent<index>.txt`, one JSON text each, and `scores/<scorer>/` likewise.

1. `export_delphi` writes one explainer's explanations of one SAE. Our scores have no place there: delphi keeps every
   example's outcome and we keep the estimate over them.
2. `import_delphi` reads explanations of one module. Of the outcomes of the scorers `detection` and `fuzz` it keeps the
   balanced accuracy, delphi's own summary, as a published score; examples without a prediction are left out.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from db import store
from db.interchange.files import plain_text, read_whole, refuse, staged
from db.interchange.reading import feature_texts
from safe_sail.errors import ExportRefused
from safe_sail.records import Explanation, FeatureId, PublishedScore

DELPHI = "delphi"
"""Source of the scores, and explainer where the caller names none: the files do not say who explained."""
SCORERS = ("detection", "fuzz")
MAX_BYTES = 64 * 2**20

_NAME = re.compile(r"(.+)_latent(0|[1-9][0-9]{0,8})\.txt")


class Imported(NamedTuple):
    """What an import brought."""

    n_explanations: int
    n_scores: int
    n_undefined: int
    """Score files left out: no predicted example of one of the two classes."""


def export_delphi(
    session: Session, slug: str, target: Path, *, explainer: str, prompt_version: str | None = None
) -> int:
    """Writes one explainer's explanations of one SAE; the number of files.

    Raises:
        NotFound: no SAE has this slug.
        ExportRefused: the target exists or cannot be written, or the explainer explained nothing here.
    """
    store.load_sae(session, slug)
    n = 0
    with staged(target, folder=True) as stage:
        (stage / "explanations").mkdir()
        for one in feature_texts(session, slug, explainer=explainer, prompt_version=prompt_version):
            if one.text is not None:
                path = stage / "explanations" / f"{slug}_latent{one.index}.txt"
                path.write_text(json.dumps(one.text), encoding="ascii")
                n += 1
        if not n:
            raise ExportRefused(f"{slug}: nothing explained by `{explainer}`; name another explainer.")
    return n


def import_delphi(session: Session, folder: Path, *, sae: str, explainer: str = DELPHI, run_id: str) -> Imported:
    """Keeps the explanations and the scorers' balanced accuracies as of an SAE that is kept before.

    Raises:
        ImportUnreadable: nothing is there, files of several modules, or a file is none of the format.
        NotFound: no SAE has this slug.
    """
    store.load_sae(session, sae)
    reader = _Reader(sae, explainer)
    texts = sorted((folder / "explanations").glob("*.txt"))
    judged = {scorer: sorted((folder / "scores" / scorer).glob("*.txt")) for scorer in SCORERS}
    if not texts and not any(judged.values()):
        refuse(str(folder), "explanations/ or scores/ with <module>_latent<index>.txt", "none of them")
    store.save_explanations(session, (reader.explanation(path) for path in texts), run_id=run_id)
    for scorer, paths in judged.items():
        store.save_published_scores(session, reader.scores(scorer, paths), run_id=run_id)
    return Imported(len(texts), reader.n_scores, reader.n_undefined)


class _Reader:
    """Records of the files, all of one module."""

    def __init__(self, sae: str, explainer: str) -> None:
        self._sae = sae
        self._explainer = explainer
        self._module: str | None = None
        self.n_scores = 0
        self.n_undefined = 0

    def explanation(self, path: Path) -> Explanation:
        """The file's text."""
        feature = self._feature(path)
        text = plain_text(str(path), read_whole(path, MAX_BYTES), "the file")
        return Explanation(feature=feature, text=text, explainer=self._explainer, prompt_version="1")

    def scores(self, scorer: str, paths: list[Path]) -> Iterator[PublishedScore]:
        """Balanced accuracy of each file that defines one."""
        for path in paths:
            feature = self._feature(path)
            value = _balanced_accuracy(str(path), read_whole(path, MAX_BYTES))
            if value is None:
                self.n_undefined += 1
                continue
            self.n_scores += 1
            yield PublishedScore(
                feature=feature, method=f"{scorer}_balanced_accuracy", value=value, source=self._explainer
            )

    def _feature(self, path: Path) -> FeatureId:
        named = _NAME.fullmatch(path.name)
        if named is None:
            refuse(str(path), "a name as <module>_latent<index>.txt", path.name)
        self._module = self._module or named[1]
        if named[1] != self._module:
            refuse(str(path), f"files of one module, {self._module}", named[1])
        return FeatureId(sae=self._sae, index=int(named[2]))


def _balanced_accuracy(place: str, outcomes: Any) -> float | None:
    if not isinstance(outcomes, list):
        refuse(place, "a JSON list of outcomes", outcomes)
    right: dict[bool, list[bool]] = {True: [], False: []}
    for outcome in outcomes:
        truth = outcome.get("activating") if isinstance(outcome, dict) else None
        if not isinstance(truth, bool):
            refuse(place, "outcomes with `activating`, true or false", outcome)
        predicted = outcome.get("prediction")
        if predicted is not None:
            if not isinstance(predicted, bool | int) or predicted not in (0, 1):
                refuse(place, "`prediction` to be true, false or null", predicted)
            right[truth].append(bool(predicted) == truth)
    if not right[True] or not right[False]:
        return None
    return sum(sum(one) / len(one) for one in right.values()) / 2
