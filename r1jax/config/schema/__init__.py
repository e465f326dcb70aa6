"""Every section of a config as a frozen dataclass; RunConfig is the root."""
