"""Records of what others published about features: scores without n and interval, and tags.

Our own scores are `ExplanationScore`s, whose `Estimate` says on how many contexts it stands. A file that gives a bare
number cannot become one without inventing the rest, so it stays what it is.
"""

import math
from dataclasses import dataclass

from safe_sail.errors import BadRecord
from safe_sail.records.subjects import FeatureId


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedScore:
    """A number that someone else gave a feature, with nothing known of its n or interval."""

    feature: FeatureId
    method: str
    """Name of the number where it was published, as `correlation_score`."""
    value: float
    """As published; finite."""
    source: str
    """Who published it; the explainer of the explanations that came with it."""

    def __post_init__(self) -> None:
        if not (self.method and self.source):
            raise BadRecord(f"{self.feature}: a published score names its method and source.")
        if not math.isfinite(self.value):
            raise BadRecord(f"{self.feature}: a published score is finite; got {self.value}. Leave it out.")


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureTags:
    """Domains that one source puts a feature in; a feature may be in several."""

    feature: FeatureId
    tags: tuple[str, ...]
    """In the source's order, each once; empty for none."""
    source: str

    def __post_init__(self) -> None:
        if not self.source or not all(self.tags):
            raise BadRecord(f"{self.feature}: tags and their source have names; got {self.tags} of `{self.source}`.")
        if len(set(self.tags)) < len(self.tags):
            raise BadRecord(f"{self.feature}: a tag appears twice in {self.tags}.")
