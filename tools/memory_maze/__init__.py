"""The memory maze: episodes of MiniGrid's MemoryEnv, walked by an expert, as videos with positions."""
