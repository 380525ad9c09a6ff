"""The digest of `machine_digest.py` is the one that every machine tried so far has given, in both engines."""

from __future__ import annotations

import pytest

from machine_digest import digest_of, parts

#: Beside it stand independent checks of each part: test_philox, test_sampler, test_engines, test_verification.
DIGEST = "4f6aed3450647e0478ba86541555e1988877392d56990d5c2f8237ea1e7bbb5c"


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_noise_operators_votes_and_certificate_are_the_same_as_on_every_machine(engine: str) -> None:
    lines = parts(engine)
    assert digest_of(lines) == DIGEST, "\n".join(lines)
