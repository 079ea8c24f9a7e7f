"""What a user would run instead of cmibq, set as its authors advise; loaded when measured."""
