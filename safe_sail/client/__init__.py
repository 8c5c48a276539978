"""A client of the service, without torch: `Client`, and what it gives."""

from safe_sail.client.answers import FeatureInfo, FeatureSummary, ImportCount, ImportSummary, SaeInfo
from safe_sail.client.service import Client

__all__ = ["Client", "FeatureInfo", "FeatureSummary", "ImportCount", "ImportSummary", "SaeInfo"]
