"""The same reward for ms-swift: swift rlhf --rlhf_type grpo --external_plugins swift_plugin.py --reward_funcs vpo"""

from others import reward
from swift.rewards import ORM, orms


class VPO(ORM):
    """Its functions read the columns of the data set, such as `label`."""

    def __call__(self, completions, **columns):
        return reward(completions=completions, **columns)


orms["vpo"] = VPO
