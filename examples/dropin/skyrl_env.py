"""The same reward for SkyRL, as an environment of one turn that also asks.

skyrl_gym.register(id="vpo", entry_point="skyrl_env:VPOEnv") in your entry point, then environment.env_class=vpo
"""

from others import M, reward
from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput

from vpo_lab import ask


class VPOEnv(BaseTextEnv):
    def __init__(self, env_config=None, extras=None):
        super().__init__()
        self.label = (extras or {})["reward_spec"]["ground_truth"]

    def init(self, prompt):
        return ask(prompt, M), {}

    def step(self, action):
        score = reward.one(action, label=self.label)["score"]
        return BaseTextEnvStepOutput(observations=[], reward=score, done=True, metadata={})
