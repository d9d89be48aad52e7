"""What compression does to a network. Importing it registers the Gymnasium environment."""

import gymnasium

gymnasium.register("joulecut/Compression-v0", entry_point="envs.gym_env:GymCompressionEnv")
