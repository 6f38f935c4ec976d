"""A run's numbers on the Prometheus endpoints of a Ray cluster, which puts `ray_` before their names.

In: samples. Out: one gauge of Ray's for each name. Ray drops them when the worker that set them ends.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.run.gauges import GAUGES, PREFIX, Sample

if TYPE_CHECKING:
    from ray.util.metrics import Gauge


class RayGauges:
    """Sets gauges of Ray's, each made when its first sample comes."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def __call__(self, found: Sequence[Sample]) -> None:
        """Sets each gauge to its sample."""
        for name, labels, value in found:
            self._gauge(name, tuple(labels)).set(value, tags=dict(labels))

    def _gauge(self, name: str, labels: tuple[str, ...]) -> "Gauge":
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            self._gauges[name] = Gauge(PREFIX + name, description=GAUGES[name], tag_keys=labels)
        return self._gauges[name]
