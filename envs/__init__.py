"""What compression does to a network. Importing it registers the Gymnasium environment."""

import gymnasium

ENVIRONMENT_ID = "joulecut/Compression-v0"

gymnasium.register(ENVIRONMENT_ID, entry_point="envs.gym_env:GymCompressionEnv")
