"""The second family: photographs of garments, and their judges."""
