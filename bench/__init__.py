"""What the program costs and carries, measured and reckoned."""
