"""Every step of the package keeps every law."""

import pytest

from headrace.testing.step_conformance import LAWS, discover


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("cls", discover(), ids=lambda cls: cls.__name__)
def test_a_step_keeps_the_law(cls, law):
    law(cls)


def test_the_steps_are_found():
    assert {"Where", "Select", "Derive", "Validate", "Unpivot", "Enrich", "Dedupe", "Sample", "Apply"} <= {
        cls.__name__ for cls in discover()
    }
