"""What ships with the package: prompts, reward heads, and how the embedded policy is prepared."""
