"""What a node is made of: its lifetime, its compute thread, its watch over others. Knows no role and no policy."""
