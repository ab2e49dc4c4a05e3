"""Callbacks, one a file."""

from l3rs.lightning.callbacks.batch_norm_mode import BatchNormMode
from l3rs.lightning.callbacks.head_start import HeadStart
from l3rs.lightning.callbacks.head_then_all import HeadThenAll
from l3rs.lightning.callbacks.monitor import L3RSMonitor
from l3rs.lightning.callbacks.recent_statistics import RecentStatistics

__all__ = ["BatchNormMode", "HeadStart", "HeadThenAll", "L3RSMonitor", "RecentStatistics"]
