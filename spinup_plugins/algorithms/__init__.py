"""One algorithm, one file: VPG, TRPO, PPO, DDPG, TD3 and SAC, each with its equations numbered beside the code."""
