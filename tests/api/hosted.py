"""An API model's actor for a node of the tests: it says how often it was asked, and by whom."""

from __future__ import annotations

from sgl_actors.actors.api.actor import ApiActor
from sgl_actors.lang.backends.vendor import Settings, Vendor
from tests.api.fake_vendor import FakeVendor, end


class Counting(ApiActor):
    """Answers with the number of the request."""

    def make_vendor(self, settings: Settings) -> Vendor:
        vendor = FakeVendor(lambda ask: end(f" {len(vendor.asked)} of {settings.model}"))
        return vendor
