"""Is a setting that may change on the way told where it changes numbers?"""

from sslzoo.keys import Free
from sslzoo.launch.facts import FREE
from sslzoo.recipe.sections import Run

# The device may change numbers, and is told with the machine.
CHANGES_NOTHING = {"save_every", "keep", "milestones", "log_every", "workers", "device", "monitor", "monitor_every"}


def test_every_free_setting_of_a_run_is_compared_or_changes_no_number():
    free = {name for name, key in Run.model_fields.items() if Free() in key.metadata}
    assert free == {*FREE} | CHANGES_NOTHING
    assert not {*FREE} & CHANGES_NOTHING
