"""Mathematics on tensors: attention operators without modules, and what they cost."""
