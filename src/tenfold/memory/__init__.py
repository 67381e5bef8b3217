"""Floor 2: physical pages and the virtual ranges that draw on them. Mechanism only."""
