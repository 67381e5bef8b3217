"""The measurement of page eviction against eviction by age."""

from __future__ import annotations

import json

from tenfold.bench.models.eviction import staggered


def test_on_staggered_answers_more_stays_cached_than_by_age_alone() -> None:
    page, age = (
        staggered(policy, 1, answers=200, pages=40, page_bytes=8 << 20)
        for policy in ("page", "age")
    )
    assert page.hit_share > age.hit_share + 0.05
    assert page.pages_taken > age.pages_taken  # more pages can be had
    assert page.blocks_lost < age.blocks_lost
    assert page.filled > age.filled + 0.2
    assert json.loads(json.dumps(page.to_json()))["policy"] == "page"
